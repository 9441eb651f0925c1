package grant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// Answers that never come, or never come to an end.

// neverEnding are faults that last as long as the client bears them.
var neverEnding = map[string]granttest.Fault{
	"hang":               granttest.Hang,
	"drip":               drip(time.Minute),
	"drip in time":       drip(time.Second),
	"hijacked by a 101":  switchProtocols,
	"heads without end":  earlyHints,
	"refused, endlessly": refusedEndlessly,
}

// drip and truncated spoil a good answer, whatever grant it is to.
func drip(interval time.Duration) granttest.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		granttest.Drip(interval)(w, r, &recorder{})
	}
}

func truncated(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	granttest.Truncated(w, r, &recorder{})
}

// switchProtocols hands the connection over, bare, and says no more on it.
func switchProtocols(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "other")
	w.WriteHeader(http.StatusSwitchingProtocols)
	flush(w)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// earlyHints gives informational answers only.
func earlyHints(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	for r.Context().Err() == nil {
		w.WriteHeader(http.StatusEarlyHints)
		time.Sleep(time.Second)
	}
	panic(http.ErrAbortHandler)
}

// refusedEndlessly refuses at once, and then takes its time to say why.
func refusedEndlessly(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	w.WriteHeader(http.StatusBadRequest)
	flush(w)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func TestEveryRequestEndsAtItsDeadline(t *testing.T) {
	for name, fault := range neverEnding {
		for _, grantType := range bothGrants {
			t.Run(name+", "+grantType, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := &granttest.Server{}
					srv.Always(fault)
					c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
					start := time.Now()
					_, err := ask(t.Context(), c, grantType)
					if got := time.Since(start); got > defaultTimeout {
						t.Errorf("took %v, want %v at most", got, defaultTimeout)
					}
					want := failure{tokencache.ErrOutcomeUnknown, "timeout", 0}
					switch {
					case name == "hijacked by a 101":
						want = failure{location{grantType: grantType}.unknownRefresh(), "bad_response", 0}
					case name == "refused, endlessly" && grantType == refreshToken:
						want = failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0}
					case name == "refused, endlessly":
						want = failure{tokencache.ErrClientRejected, "invalid_request", 0}
					}
					wantFailure(t, err, want)
				})
			})
		}
	}
}

// sentinelOf is what a grant of this type fails with if it is refused.
func sentinelOf(grantType string) error {
	return location{grantType: grantType}.rejected()
}

func TestASlowAnswerInTimeIsAGoodAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{Delay: 9 * time.Second}
		c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
		if _, err := c.ClientCredentials(t.Context()); err != nil {
			t.Error(err)
		}
		c.cfg.Timeout = 5 * time.Second
		_, err := c.ClientCredentials(t.Context())
		wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "timeout", 0})
	})
}

func TestADialThatHangsHasSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Minute)
			return nil, context.DeadlineExceeded
		}
		defer time.Sleep(time.Minute) // the transport lets a dial end by itself
		_, err := ask(t.Context(), clientOf(t, "http://server/", Config{Transport: transport}), refreshToken)
		wantFailure(t, err, failure{nil, "timeout", 0})
	})
}

func TestAHandshakeThatHangsHasSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, server) }()
			return client, nil
		}
		start := time.Now()
		_, err := ask(t.Context(), clientOf(t, "https://server/", Config{Transport: transport}), refreshToken)
		wantFailure(t, err, failure{nil, "tls", 0})
		if got, want := time.Since(start), 5*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
}

func TestCancellingReturnsTheContextsError(t *testing.T) {
	for name, fault := range neverEnding {
		if name == "refused, endlessly" || name == "hijacked by a 101" { // which are answers, whatever follows
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			srv := &granttest.Server{}
			srv.Always(fault)
			c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(5*time.Second, cancel)
			for range 2 { // in flight, and before it starts
				if _, err := c.ClientCredentials(ctx); err != context.Canceled {
					t.Errorf("%s: got %v, want %v", name, err, context.Canceled)
				}
			}
			early, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := c.ClientCredentials(early)
			wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "timeout", 0})
		})
	}
}

// Answers that break off, and connections that do not come about.

func TestALostAnswerLeavesTheOutcomeUnknown(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"cut": granttest.Cut, "lost": granttest.LoseAnswer, "truncated": truncated,
		"no HTTP": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "220 mail.test ESMTP\r\n")
			_ = conn.Close()
		},
		"a header without end": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("X-Long", strings.Repeat("a", 100<<10))
		},
	} {
		srv := &granttest.Server{}
		srv.Always(fault)
		c := clientOf(t, serve(t, srv)+"/oauth/token", Config{})
		for _, grantType := range bothGrants {
			_, err := ask(t.Context(), c, grantType)
			t.Run(name+", "+grantType, func(t *testing.T) {
				wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "connection_lost", 0})
			})
		}
		if got, want := srv.Stats().Requests, 2; got != want {
			t.Errorf("%s: %d requests, want %d: a request was repeated", name, got, want)
		}
	}
}

func TestARefusalThatBreaksOffIsARefusalAllTheSame(t *testing.T) {
	srv := &granttest.Server{ClientID: "somebody else", RefusedClient: 403}
	srv.Always(granttest.Truncated)
	_, err := clientOf(t, serve(t, srv)+"/oauth/token", Config{}).ClientCredentials(t.Context())
	wantFailure(t, err, failure{tokencache.ErrClientRejected, "invalid_client", 0})
}

func TestWithoutAConnectionNothingWasSent(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	dialing := func(err error) http.RoundTripper {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
		return transport
	}
	for _, tt := range []struct {
		name, address string
		transport     http.RoundTripper
		says          string
	}{
		{"refused", closed.URL, nil, "connection refused"},
		{"no such name", "http://auth.test/", dialing(&net.DNSError{Err: "no such host", Name: "auth.test", IsNotFound: true}), "lookup auth.test: no such host"},
		{"an error that may quote", "http://auth.test/", dialing(errors.New("canary")), "the connection could not be made"},
		{"a URL without host", "http:///token", nil, "the connection could not be made"},
		{"an unknown scheme", "gopher://auth.test/", nil, "the connection could not be made"},
	} {
		for _, grantType := range bothGrants {
			_, err := ask(t.Context(), clientOf(t, tt.address, Config{Transport: tt.transport}), grantType)
			wantFailure(t, err, failure{nil, "unreachable", 0})
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %q does not say %q", tt.name, err, tt.says)
			}
		}
	}
}

func TestADialThatTakesTooLongIsATimeout(t *testing.T) {
	transport := NewTransport(nil)
	transport.DialContext = (&net.Dialer{Deadline: time.Unix(0, 1)}).DialContext
	_, err := ask(t.Context(), clientOf(t, "http://127.0.0.1/", Config{Transport: transport}), refreshToken)
	wantFailure(t, err, failure{nil, "timeout", 0})
}

func TestAnAddressThatMakesNoURL(t *testing.T) {
	c := New(Config{TokenURL: &url.URL{Scheme: "http", Host: "a b"}})
	_, err := c.ClientCredentials(t.Context())
	wantFailure(t, err, failure{nil, "unreachable", 0})
}

// Answers that are too much.

// TestAnAnswerWithoutEndIsCutOff counts all that is allocated meanwhile, which
// is more than is ever held.
func TestAnAnswerWithoutEndIsCutOff(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"endless":    granttest.Endless,
		"gzip bomb":  prepared(granttest.GzipBomb(16 << 20)),
		"many names": granttest.Status(200, `{"access_token":"a"`+manyMembers()+`}`),
		"deep":       granttest.Status(200, `{"access_token":"a","x":`+strings.Repeat(`[`, maxBody/2)),
		"blanks": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = io.WriteString(w, `{"access_token":"a"}`+strings.Repeat(" ", maxBody)+"trailing data")
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &granttest.Server{}
			srv.Always(fault)
			c := clientOf(t, serve(t, srv)+"/oauth/token", Config{})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := ask(t.Context(), c, refreshToken)
			runtime.ReadMemStats(&after)
			wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "bad_response", 0})
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d KiB", allocated>>10)
			if allocated > 2<<20 {
				t.Errorf("%d bytes were allocated in all", allocated)
			}
		})
	}
}

// prepared is what f answers, made beforehand.
func prepared(f granttest.Fault) granttest.Fault {
	w := httptest.NewRecorder()
	f(w, nil, nil)
	return func(to http.ResponseWriter, _ *http.Request, _ http.Handler) {
		maps.Copy(to.Header(), w.Header())
		_, _ = to.Write(w.Body.Bytes())
	}
}

// manyMembers are about as many as a body can hold.
func manyMembers() string {
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, `,"%x":0`, i)
	}
	return b.String()
}
