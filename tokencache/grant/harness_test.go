package grant

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
	"go.uber.org/zap/zaptest"
)

// overPipe returns a transport to a server of h over net.Pipe, so that a
// bubble's clock can move. A test fails in the end if a connection is left.
func overPipe(t *testing.T, h http.Handler) *http.Transport {
	l := granttest.NewPipe()
	server := &http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("still serving: %v", err)
			_ = server.Close()
		}
		<-done
	})
	transport := NewTransport(nil)
	transport.DialContext = l.Dial
	return transport
}

// serve returns the address of a server of h.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// clientOf returns a client of the token endpoint at address.
func clientOf(t *testing.T, address string, cfg Config) *Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TokenURL = cmp.Or(cfg.TokenURL, u)
	cfg.ClientID = cmp.Or(cfg.ClientID, testID)
	if cfg.ClientSecret == nil {
		cfg.ClientSecret = func() (tokencache.Secret, error) { return tokencache.NewSecret(testSecret), nil }
	}
	if cfg.Log == nil {
		cfg.Log = zaptest.NewLogger(t)
	}
	return New(cfg)
}

// ask performs the grant of this type.
func ask(ctx context.Context, g tokencache.Grants, grantType string) (tokencache.Token, error) {
	if grantType == refreshToken {
		return g.RefreshToken(ctx, tokencache.NewSecret(testRefresh))
	}
	return g.ClientCredentials(ctx)
}

// recorder is a token endpoint that keeps what it is sent.
type recorder struct {
	mu       sync.Mutex
	requests []received
	answer   string // "": one with access and refresh token
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, received{req.Method, req.RequestURI, req.Header, string(body)})
	_, _ = io.WriteString(w, cmp.Or(r.answer, `{"access_token":"a","token_type":"Bearer","expires_in":3600,"refresh_token":"r"}`))
}

// sent is the one request that ask(c, grantType) makes of a client so configured.
func sent(t *testing.T, cfg Config, grantType string) received {
	t.Helper()
	r := &recorder{}
	if _, err := ask(t.Context(), clientOf(t, serve(t, r)+"/token", cfg), grantType); err != nil {
		t.Fatal(err)
	}
	if got := len(r.requests); got != 1 {
		t.Fatalf("got %d requests, want 1", got)
	}
	return r.requests[0]
}

// params is a body that holds the parameters in this order.
func params(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pairs[i] + "=" + url.QueryEscape(pairs[i+1]))
	}
	return b.String()
}

// failure is what an error tells the cache.
type failure struct {
	sentinel   error
	reason     string
	retryAfter time.Duration
}

func (f failure) String() string {
	return fmt.Sprintf("(%v, %s, %v)", f.sentinel, f.reason, f.retryAfter)
}

func failureOf(t *testing.T, err error) failure {
	t.Helper()
	f, ok := errors.AsType[tokencache.Failure](err)
	if !ok {
		t.Fatalf("%v is no tokencache.Failure", err)
	}
	if !slices.Contains(Reasons, f.Reason()) {
		t.Errorf("reason %q is not one of Reasons", f.Reason())
	}
	got := failure{reason: f.Reason(), retryAfter: f.RetryAfter()}
	for _, sentinel := range []error{
		tokencache.ErrRefreshTokenRejected, tokencache.ErrOutcomeUnknown, tokencache.ErrClientRejected, tokencache.ErrNotAsked,
	} {
		if errors.Is(err, sentinel) {
			if got.sentinel != nil {
				t.Errorf("%v is two sentinels", err)
			}
			got.sentinel = sentinel
		}
	}
	return got
}

func wantFailure(t *testing.T, err error, want failure) {
	t.Helper()
	if got := failureOf(t, err); got != want {
		t.Errorf("%v: got %v, want %v", err, got, want)
	}
}
