// Package provider is an OpenFeature provider over flagd.evaluation.v2, for tests: flagd's own Go provider cannot be had
// everywhere that the tests run. It asks for every evaluation and caches nothing.
package provider

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	flagd "flaghoist-client/gen/flagd/evaluation/v2"
)

// ReconnectAfter is the pause between two tries to open the event stream.
const ReconnectAfter = 200 * time.Millisecond

// Provider answers from a server of flagd.evaluation.v2; its event stream feeds the SDK's events.
type Provider struct {
	connection *grpc.ClientConn
	service    flagd.ServiceClient
	deadline   time.Duration
	events     chan of.Event
	ready      chan struct{}
	stop       context.CancelFunc
}

// New returns a provider of the server at address; nothing is connected before Init.
func New(address string, deadline time.Duration) (*Provider, error) {
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// As flagd's Go provider does; a server that forbids it closes the connection at the third ping.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, PermitWithoutStream: true}),
	)
	if err != nil {
		return nil, err
	}
	return &Provider{
		connection: connection,
		service:    flagd.NewServiceClient(connection),
		deadline:   deadline,
		events:     make(chan of.Event, 64),
		ready:      make(chan struct{}),
	}, nil
}

// Metadata names the provider.
func (p *Provider) Metadata() of.Metadata { return of.Metadata{Name: "flagd-rpc"} }

// Hooks: none.
func (p *Provider) Hooks() []of.Hook { return nil }

// EventChannel gives the SDK what the event stream tells.
func (p *Provider) EventChannel() <-chan of.Event { return p.events }

// Init opens the event stream, and fails when the server is not ready within the deadline; it goes on trying.
func (p *Provider) Init(of.EvaluationContext) error {
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go p.follow(ctx)
	select {
	case <-p.ready:
		return nil
	case <-time.After(p.deadline):
		return errors.New("the server was not ready within the deadline")
	}
}

// Shutdown ends the event stream and closes the connection.
func (p *Provider) Shutdown() {
	p.stop()
	_ = p.connection.Close()
}

func (p *Provider) follow(ctx context.Context) {
	for first := true; ctx.Err() == nil; {
		wasReady, err := p.listen(ctx, first)
		first = first && !wasReady
		if ctx.Err() != nil {
			return
		}
		if wasReady {
			p.emit(of.ProviderStale, of.ProviderEventDetails{Message: err.Error()})
		}
		select {
		case <-time.After(ReconnectAfter):
		case <-ctx.Done():
		}
	}
}

// listen reads one event stream to its end, and says whether it had become ready.
func (p *Provider) listen(ctx context.Context, first bool) (wasReady bool, ended error) {
	stream, err := p.service.EventStream(ctx, &flagd.EventStreamRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return wasReady, errors.New("the server ended the event stream")
		}
		if err != nil {
			return wasReady, err
		}
		switch message.GetType() {
		case "provider_ready":
			if first {
				close(p.ready)
				first = false
			}
			wasReady = true
			p.emit(of.ProviderReady, of.ProviderEventDetails{})
		case "configuration_change":
			flags := message.GetData().GetFields()["flags"].GetStructValue().GetFields()
			keys := make([]string, 0, len(flags))
			for key := range flags {
				keys = append(keys, key)
			}
			p.emit(of.ProviderConfigChange, of.ProviderEventDetails{FlagChanges: keys})
		}
	}
}

func (p *Provider) emit(kind of.EventType, details of.ProviderEventDetails) {
	p.events <- of.Event{ProviderName: "flagd-rpc", EventType: kind, ProviderEventDetails: details}
}

// answer is what the five responses of flagd.evaluation.v2 have in common.
type answer interface {
	GetReason() string
	GetVariant() string
	GetMetadata() *structpb.Struct
}

func resolve[Req any, Res answer, Value any](
	ctx context.Context, p *Provider, flag string, fallback Value, flat of.FlattenedContext,
	request func(string, *structpb.Struct) Req,
	call func(context.Context, Req, ...grpc.CallOption) (Res, error),
	value func(Res) (Value, bool),
) of.GenericResolutionDetail[Value] {
	failed := func(err of.ResolutionError) of.GenericResolutionDetail[Value] {
		return of.GenericResolutionDetail[Value]{
			Value:                    fallback,
			ProviderResolutionDetail: of.ProviderResolutionDetail{ResolutionError: err, Reason: of.ErrorReason},
		}
	}
	attributes, err := contextStruct(flat)
	if err != nil {
		return failed(of.NewInvalidContextResolutionError(err.Error()))
	}
	ctx, cancel := context.WithTimeout(ctx, p.deadline)
	defer cancel()
	response, err := call(ctx, request(flag, attributes), grpc.WaitForReady(true))
	if err != nil {
		return failed(resolutionError(err))
	}
	resolved, present := value(response)
	if !present {
		resolved = fallback
	}
	return of.GenericResolutionDetail[Value]{
		Value: resolved,
		ProviderResolutionDetail: of.ProviderResolutionDetail{
			Reason:       of.Reason(response.GetReason()),
			Variant:      response.GetVariant(),
			FlagMetadata: response.GetMetadata().AsMap(),
		},
	}
}

// contextStruct goes through JSON, because a Struct takes no []string, int32 or other types that JSON can carry.
func contextStruct(flat of.FlattenedContext) (*structpb.Struct, error) {
	encoded, err := json.Marshal(flat)
	if err != nil {
		return nil, err
	}
	attributes := &structpb.Struct{}
	return attributes, attributes.UnmarshalJSON(encoded)
}

func resolutionError(err error) of.ResolutionError {
	message := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.NotFound:
		return of.NewFlagNotFoundResolutionError(message)
	case codes.InvalidArgument:
		return of.NewTypeMismatchResolutionError(message)
	case codes.DataLoss:
		return of.NewParseErrorResolutionError(message)
	case codes.Unavailable:
		return of.NewProviderNotReadyResolutionError(message)
	default:
		return of.NewGeneralResolutionError(message)
	}
}

// BooleanEvaluation asks the server for a boolean.
func (p *Provider) BooleanEvaluation(
	ctx context.Context, flag string, fallback bool, flat of.FlattenedContext,
) of.BoolResolutionDetail {
	return resolve(ctx, p, flag, fallback, flat,
		func(key string, attributes *structpb.Struct) *flagd.ResolveBooleanRequest {
			return &flagd.ResolveBooleanRequest{FlagKey: key, Context: attributes}
		},
		p.service.ResolveBoolean,
		func(r *flagd.ResolveBooleanResponse) (bool, bool) { return r.GetValue(), r.Value != nil },
	)
}

// StringEvaluation asks the server for a string.
func (p *Provider) StringEvaluation(
	ctx context.Context, flag string, fallback string, flat of.FlattenedContext,
) of.StringResolutionDetail {
	return resolve(ctx, p, flag, fallback, flat,
		func(key string, attributes *structpb.Struct) *flagd.ResolveStringRequest {
			return &flagd.ResolveStringRequest{FlagKey: key, Context: attributes}
		},
		p.service.ResolveString,
		func(r *flagd.ResolveStringResponse) (string, bool) { return r.GetValue(), r.Value != nil },
	)
}

// FloatEvaluation asks the server for a float.
func (p *Provider) FloatEvaluation(
	ctx context.Context, flag string, fallback float64, flat of.FlattenedContext,
) of.FloatResolutionDetail {
	return resolve(ctx, p, flag, fallback, flat,
		func(key string, attributes *structpb.Struct) *flagd.ResolveFloatRequest {
			return &flagd.ResolveFloatRequest{FlagKey: key, Context: attributes}
		},
		p.service.ResolveFloat,
		func(r *flagd.ResolveFloatResponse) (float64, bool) { return r.GetValue(), r.Value != nil },
	)
}

// IntEvaluation asks the server for an integer.
func (p *Provider) IntEvaluation(
	ctx context.Context, flag string, fallback int64, flat of.FlattenedContext,
) of.IntResolutionDetail {
	return resolve(ctx, p, flag, fallback, flat,
		func(key string, attributes *structpb.Struct) *flagd.ResolveIntRequest {
			return &flagd.ResolveIntRequest{FlagKey: key, Context: attributes}
		},
		p.service.ResolveInt,
		func(r *flagd.ResolveIntResponse) (int64, bool) { return r.GetValue(), r.Value != nil },
	)
}

// ObjectEvaluation asks the server for an object.
func (p *Provider) ObjectEvaluation(
	ctx context.Context, flag string, fallback any, flat of.FlattenedContext,
) of.InterfaceResolutionDetail {
	return resolve(ctx, p, flag, fallback, flat,
		func(key string, attributes *structpb.Struct) *flagd.ResolveObjectRequest {
			return &flagd.ResolveObjectRequest{FlagKey: key, Context: attributes}
		},
		p.service.ResolveObject,
		func(r *flagd.ResolveObjectResponse) (any, bool) { return r.GetValue().AsMap(), r.Value != nil },
	)
}
