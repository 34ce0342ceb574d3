// A service of a chain, in Go: asks its sidecar over gRPC, then the next service over HTTP. ../README.md has the protocol.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	flagd "flaghoist-chain/gen/flagd/evaluation/v2"
)

const (
	pinKey    = "flaghoist.seq"
	seqHeader = "flaghoist-seq"
	ourPrefix = "flaghoist"

	// For failures only: a chain of three answers within some milliseconds.
	callTimeout = 10 * time.Second
)

// answer is one flag as the sidecar gave it, with what it said besides: flag metadata, and headers.
type answer struct {
	Value    bool              `json:"value"`
	Metadata map[string]any    `json:"metadata"`
	Headers  map[string]string `json:"headers"`
}

// sight is what one service of the chain saw of one request.
type sight struct {
	Service string `json:"service"`
	Baggage string `json:"baggage"` // as it came in
	A       answer `json:"a"`
	B       answer `json:"b"`
}

type service struct {
	sidecar flagd.ServiceClient
	http    *http.Client
}

func (s *service) evaluate(ctx context.Context, key, user, baggage string) (answer, error) {
	question := &flagd.ResolveBooleanRequest{FlagKey: key}
	if user != "" {
		question.Context = &structpb.Struct{Fields: map[string]*structpb.Value{"targetingKey": structpb.NewStringValue(user)}}
	}
	if baggage != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "baggage", baggage)
	}
	var trailer metadata.MD
	response, err := s.sidecar.ResolveBoolean(ctx, question, grpc.Trailer(&trailer))
	if err != nil {
		return answer{}, err
	}
	headers := map[string]string{}
	for name, values := range trailer {
		if strings.HasPrefix(name, ourPrefix) {
			headers[name] = strings.Join(values, ",")
		}
	}
	return answer{Value: response.GetValue(), Metadata: response.GetMetadata().AsMap(), Headers: headers}, nil
}

func (s *service) next(ctx context.Context, path, pins, user, baggage string) ([]json.RawMessage, error) {
	port, rest, _ := strings.Cut(path, ",")
	query := url.Values{"path": {rest}, "pins": {pins}, "user": {user}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/ask?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	if baggage != "" {
		request.Header.Set("baggage", baggage)
	}
	response, err := s.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the next service answered %d: %s", response.StatusCode, body)
	}
	var sights []json.RawMessage
	return sights, json.Unmarshal(body, &sights)
}

func (s *service) ask(r *http.Request) ([]any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	query := r.URL.Query()
	path, pins, user := query.Get("path"), query.Get("pins"), query.Get("user")
	baggage := strings.Join(r.Header.Values("baggage"), ",")
	seen := sight{Service: "go", Baggage: baggage}
	var err error
	if seen.A, err = s.evaluate(ctx, "a", user, baggage); err != nil {
		return nil, err
	}
	if pins == "on" && !strings.Contains(baggage, pinKey+"=") {
		// The edge of the chain: what its first answer was made from holds from here on, beside what others put there.
		if baggage != "" {
			baggage += ","
		}
		baggage += pinKey + "=" + seen.A.Headers[seqHeader]
	}
	if seen.B, err = s.evaluate(ctx, "b", user, baggage); err != nil {
		return nil, err
	}
	sights := []any{seen}
	if path == "" {
		return sights, nil
	}
	others, err := s.next(ctx, path, pins, user, baggage)
	for _, other := range others {
		sights = append(sights, other)
	}
	return sights, err
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sights, err := s.ask(r)
	if err != nil {
		http.Error(w, "go: "+err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("content-type", "application/json")
	_ = json.NewEncoder(w).Encode(sights)
}

func main() {
	sidecar := flag.String("sidecar", "", "host:port of the sidecar's evaluation face")
	flag.Parse()
	connection, err := grpc.NewClient(*sidecar, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	mux := http.NewServeMux()
	mux.Handle("GET /ask", &service{flagd.NewServiceClient(connection), &http.Client{}})
	log.Fatal(http.Serve(listener, mux))
}
