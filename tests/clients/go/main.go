// A Go service in miniature: OpenFeature's SDK over a small RPC provider, behind the line protocol of ../README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"

	"flaghoist-client/provider"
)

// lineBytesMax is more than any request of the tests has.
const lineBytesMax = 1 << 24

type request struct {
	Op        string           `json:"op"`
	Type      string           `json:"type"`
	Key       string           `json:"key"`
	Default   any              `json:"default"`
	Context   map[string]any   `json:"context"`
	Keys      []string         `json:"keys"`
	Contexts  []map[string]any `json:"contexts"`
	TimeoutMs int              `json:"timeoutMs"`
}

// service has what a service has: a client, and what the provider's events have told it.
type service struct {
	client  *of.Client
	lock    sync.Mutex
	changed map[string]bool
	heard   chan struct{} // closed and made anew at every event
}

func newService() *service {
	s := &service{client: of.NewDefaultClient(), changed: map[string]bool{}, heard: make(chan struct{})}
	for _, kind := range []of.EventType{of.ProviderReady, of.ProviderStale, of.ProviderError, of.ProviderConfigChange} {
		callback := func(details of.EventDetails) {
			s.lock.Lock()
			defer s.lock.Unlock()
			for _, key := range details.FlagChanges {
				s.changed[key] = true
			}
			close(s.heard)
			s.heard = make(chan struct{})
		}
		of.AddHandler(kind, &callback)
	}
	return s
}

// await waits until a condition holds, which is asked at first and after every event.
func (s *service) await(holds func() bool, timeoutMs int) map[string]any {
	deadline := time.After(time.Duration(timeoutMs) * time.Millisecond)
	for {
		s.lock.Lock()
		heard, held := s.heard, holds()
		s.lock.Unlock()
		if held {
			return map[string]any{"happened": true}
		}
		select {
		case <-heard:
		case <-deadline:
			return map[string]any{"happened": false}
		}
	}
}

func evaluationContext(attributes map[string]any) of.EvaluationContext {
	targetingKey, has := attributes["targetingKey"].(string)
	delete(attributes, "targetingKey")
	if !has {
		return of.NewTargetlessEvaluationContext(attributes)
	}
	return of.NewEvaluationContext(targetingKey, attributes)
}

func told[T any](details of.GenericEvaluationDetails[T], _ error) map[string]any {
	answer := map[string]any{
		"value": details.Value, "variant": nil, "reason": details.Reason, "errorCode": nil, "metadata": details.FlagMetadata,
	}
	if details.Variant != "" {
		answer["variant"] = details.Variant
	}
	if details.ErrorCode != "" {
		answer["errorCode"] = details.ErrorCode
	}
	return answer
}

func (s *service) evaluate(r request) map[string]any {
	ctx, attributes := context.Background(), evaluationContext(r.Context)
	switch r.Type {
	case "boolean":
		fallback, _ := r.Default.(bool)
		return told(s.client.BooleanValueDetails(ctx, r.Key, fallback, attributes))
	case "string":
		fallback, _ := r.Default.(string)
		return told(s.client.StringValueDetails(ctx, r.Key, fallback, attributes))
	case "integer":
		fallback, _ := r.Default.(float64)
		return told(s.client.IntValueDetails(ctx, r.Key, int64(fallback), attributes))
	case "float":
		fallback, _ := r.Default.(float64)
		return told(s.client.FloatValueDetails(ctx, r.Key, fallback, attributes))
	case "object":
		return told(s.client.ObjectValueDetails(ctx, r.Key, r.Default, attributes))
	}
	return map[string]any{"error": fmt.Sprintf("unknown type %q", r.Type)}
}

func (s *service) census(r request) map[string]any {
	ctx, contexts := context.Background(), make([]of.EvaluationContext, len(r.Contexts))
	for i, attributes := range r.Contexts {
		contexts[i] = evaluationContext(attributes)
	}
	marks := map[string]string{}
	for _, key := range r.Keys {
		mark := make([]byte, len(contexts))
		for i, attributes := range contexts {
			details, _ := s.client.BooleanValueDetails(ctx, key, false, attributes)
			switch {
			case details.ErrorCode != "":
				mark[i] = '?'
			case details.Value:
				mark[i] = '1'
			default:
				mark[i] = '0'
			}
		}
		marks[key] = string(mark)
	}
	return map[string]any{"marks": marks}
}

func (s *service) answer(r request) map[string]any {
	switch r.Op {
	case "evaluate":
		return s.evaluate(r)
	case "census":
		return s.census(r)
	case "forget":
		s.lock.Lock()
		defer s.lock.Unlock()
		s.changed = map[string]bool{}
		return map[string]any{}
	case "await_change":
		return s.await(func() bool { return s.changed[r.Key] }, r.TimeoutMs)
	case "await_ready":
		return s.await(func() bool { return s.client.State() == of.ReadyState }, r.TimeoutMs)
	case "await_stale_or_error":
		lost := map[of.State]bool{of.StaleState: true, of.ErrorState: true, of.FatalState: true}
		return s.await(func() bool { return lost[s.client.State()] }, r.TimeoutMs)
	}
	return map[string]any{"error": fmt.Sprintf("unknown op %q", r.Op)}
}

func main() {
	host := flag.String("host", "127.0.0.1", "where the sidecar is")
	port := flag.Int("port", 0, "its port")
	mode := flag.String("mode", "rpc", "rpc only")
	deadlineMs := flag.Int("deadline-ms", 500, "deadline of a call")
	flag.String("cache", "disabled", "accepted and ignored: nothing is cached")
	flag.Parse()
	if *mode != "rpc" {
		log.Fatalf("the Go client has no mode %s", *mode)
	}
	flagd, err := provider.New(fmt.Sprintf("%s:%d", *host, *port), time.Duration(*deadlineMs)*time.Millisecond)
	if err != nil {
		log.Fatal(err)
	}
	s := newService()
	if err := of.SetProvider(flagd); err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytesMax)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			log.Fatal(err)
		}
		if r.Op == "quit" {
			break
		}
		if err := output.Encode(s.answer(r)); err != nil {
			log.Fatal(err)
		}
	}
}
