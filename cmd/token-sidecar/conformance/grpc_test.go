package conformance_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// cases are those of https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
// that need no credentials of the client's.
var cases = map[string]func(ctx context.Context, conn *grpc.ClientConn){
	"empty_unary":                 with(interop.DoEmptyUnaryCall),
	"large_unary":                 with(interop.DoLargeUnaryCall),
	"client_streaming":            with(interop.DoClientStreaming),
	"server_streaming":            with(interop.DoServerStreaming),
	"ping_pong":                   with(interop.DoPingPong),
	"empty_stream":                with(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  with(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          with(interop.DoCancelAfterBegin),
	"cancel_after_first_response": with(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     with(interop.DoStatusCodeAndMessage),
	"special_status_message":      with(interop.DoSpecialStatusMessage),
	"custom_metadata":             with(interop.DoCustomMetadata),
	"unimplemented_method":        interop.DoUnimplementedMethod,
	"unimplemented_service": func(ctx context.Context, conn *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	},
}

func with(do func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) func(context.Context, *grpc.ClientConn) {
	return func(ctx context.Context, conn *grpc.ClientConn) { do(ctx, testgrpc.NewTestServiceClient(conn)) }
}

func TestGRPCPassesWithATokenAdded(t *testing.T) {
	authority := newAuthority(t)
	certificate := credentials.NewServerTLSFromCert(&authority.https.TLS.Certificates[0])
	for name, upstream := range map[string][]string{
		"TLS":       {"UPSTREAM_URL=https://" + authority.serve(t, certificate), "UPSTREAM_CA_FILE=" + authority.ca},
		"cleartext": {"UPSTREAM_URL=http://" + authority.serve(t, insecure.NewCredentials()), "UPSTREAM_HTTP2=true"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := grpc.NewClient(authority.start(t, upstream...), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for name, do := range cases {
				t.Run(name, func(t *testing.T) {
					defer func() {
						if failure, failed := recover().(verdict); failed {
							t.Error(failure)
						}
					}()
					do(t.Context(), conn)
				})
			}
		})
	}
}

// A verdict is what package interop says of a failure. It says it to a logger,
// and ends the process if that lets it.
type verdict string

type judge struct{ grpclog.LoggerV2 }

func (judge) Fatalln(args ...any) { panic(verdict(fmt.Sprint(args...))) }

func init() { grpclog.SetLoggerV2(judge{grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)}) }

// serve runs the interop server. It wants a token that lives for every call.
func (a *authority) serve(t *testing.T, transport credentials.TransportCredentials) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(
		grpc.Creds(transport),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := a.check(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := a.check(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func (a *authority) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	r.Header["Authorization"] = md["authorization"]
	w := httptest.NewRecorder()
	a.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		return status.Error(codes.Unauthenticated, fmt.Sprint(w.Body))
	}
	return nil
}
