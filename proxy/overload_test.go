package proxy_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// wantsShed wants the answer to a request over the cap.
func (s *sidecar) wantsShed(t testing.TB, resp *http.Response) {
	t.Helper()
	wantsOwn(t, resp, http.StatusServiceUnavailable, "overloaded", "connection_limit_reached", map[string]any{"retry_after_seconds": 1})
	if got, want := resp.Header.Get("Retry-After"), "1"; got != want {
		t.Errorf("Retry-After = %q, want %q", got, want)
	}
}

// A gate is an upstream that answers when it is opened.
type gate struct{ asked, open chan struct{} }

func newGate() gate { return gate{asked: make(chan struct{}, 100), open: make(chan struct{})} }

func (g gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.asked <- struct{}{}
	<-g.open
	_, _ = io.Copy(w, r.Body)
}

// counted counts the requests for tokens.
type counted struct {
	tokens
	asked atomic.Int32
}

func (c *counted) AccessToken(ctx context.Context) (string, error) {
	c.asked.Add(1)
	return c.tokens.AccessToken(ctx)
}

// full starts a proxy that has as many requests in flight as it may.
func full(t *testing.T) (s *sidecar, source *counted, g gate) {
	const most = 3
	g, source = newGate(), &counted{tokens: tokens{token: canary}}
	s = start(t, serve(t, g.ServeHTTP).URL, proxy.Config{MaxInFlight: most, Tokens: source})
	for range most {
		s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
		<-g.asked
	}
	return s, source, g
}

func TestRequestsOverTheCapAreRefusedAtOnce(t *testing.T) {
	s, source, g := full(t)
	for range 5 {
		s.wantsShed(t, s.send(t, "GET", "/", nil))
		s.recorder.wants(t, "GET 503")
	}
	if len(g.asked) != 0 || source.asked.Load() != 3 {
		t.Errorf("the upstream was asked %d times, the token source %d", 3+len(g.asked), source.asked.Load())
	}
	if got, want := fmt.Sprint(s.recorder.failed()), "[overloaded overloaded overloaded overloaded overloaded]"; got != want {
		t.Errorf("failures = %s, want %s", got, want)
	}
	if got := s.logs.FilterMessage("request not served: overloaded").Len(); got != 1 {
		t.Errorf("%d lines logged, want 1", got)
	}
	close(g.open)
	for range 3 {
		s.recorder.wants(t, "GET 200")
	}
	if got, want := read(t, s.send(t, "POST", "/", strings.NewReader("served again")).Body), "served again"; got != want {
		t.Errorf("answered %q, want %q", got, want)
	}
}

func TestARefusalWaitsForNoBodyAndKeepsTheConnectionIfItIsSmall(t *testing.T) {
	s, _, g := full(t)
	defer close(g.open)
	for _, test := range []struct {
		name, head, body string
		kept             bool
	}{
		{"none", "", "", true},
		{"small", "Content-Length: 65536\r\n", strings.Repeat("x", 65536), true},
		{"large", "Content-Length: 65537\r\n", strings.Repeat("x", 65537), false},
		{"of unknown length", "Transfer-Encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n", false},
		{"held back", "Content-Length: 9\r\nExpect: 100-continue\r\n", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			head := "POST / HTTP/1.1\r\nHost: app\r\n" + test.head + "\r\n"
			conn, from := s.dial(t, head)
			resp := answer(t, from, "POST")
			s.wantsShed(t, resp)
			if resp.Close == test.kept {
				t.Fatalf("Connection: close is %v", resp.Close)
			}
			say(t, conn, test.body)
			if test.kept {
				say(t, conn, head)
				s.wantsShed(t, answer(t, from, "POST"))
				say(t, conn, test.body+"GET / HTTP/1.0\r\n\r\n")
				s.wantsShed(t, answer(t, from, "GET"))
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest := read(t, from); rest != "" {
				t.Errorf("there is more than the answer: %q", rest)
			}
		})
	}
}

func TestWhatABodyCutShortLeavesIsNoRequest(t *testing.T) {
	s, _, g := full(t)
	defer close(g.open)
	conn, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 99\r\n\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n")
	s.wantsShed(t, answer(t, from, "POST"))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest := read(t, from); rest != "" {
		t.Errorf("there is more than the answer: %q", rest)
	}
}

func TestATunnelIsInFlightAsLongAsItLives(t *testing.T) {
	s := start(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header["Upgrade"] == nil {
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, conn)
	}).URL, proxy.Config{MaxInFlight: 1})
	conn, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if got, want := answer(t, from, "GET").StatusCode, http.StatusSwitchingProtocols; got != want {
		t.Fatalf("status = %d, want %d", got, want)
	}
	say(t, conn, "echo")
	expect(t, from, "echo")
	s.wantsShed(t, s.send(t, "GET", "/", nil))
	s.recorder.wants(t, "GET 503")
	_ = conn.Close()
	s.recorder.wants(t, "GET 101")
	if got, want := s.send(t, "GET", "/", nil).StatusCode, http.StatusOK; got != want {
		t.Errorf("status = %d after the tunnel, want %d", got, want)
	}
}

// slowSource has no token until it is opened.
type slowSource struct{ gate }

func (s slowSource) AccessToken(context.Context) (string, error) {
	s.asked <- struct{}{}
	<-s.open
	return canary, nil
}

func (slowSource) Invalidate(string) {}

func TestNoMoreRequestsWaitForATokenThanTheCapAllows(t *testing.T) {
	source := slowSource{newGate()}
	s := start(t, serve(t, func(http.ResponseWriter, *http.Request) {}).URL, proxy.Config{MaxInFlight: 3, Tokens: source})
	statuses := make(chan int, 20)
	var waiting sync.WaitGroup
	for range cap(statuses) {
		waiting.Go(func() { statuses <- s.send(t, "GET", "/", nil).StatusCode })
	}
	for range cap(statuses) - 3 {
		if got, want := <-statuses, http.StatusServiceUnavailable; got != want {
			t.Errorf("status = %d, want %d", got, want)
		}
	}
	close(source.open)
	waiting.Wait()
	for range 3 {
		if got, want := <-statuses, http.StatusOK; got != want {
			t.Errorf("status = %d, want %d", got, want)
		}
	}
	if got, want := len(source.asked), 3; got != want {
		t.Errorf("%d waited, want %d", got, want)
	}
}

// closing tells when a connection is closed.
type closing struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *closing) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

func TestConnectionsToTheUpstreamAreNoMoreThanAllowed(t *testing.T) {
	const most, clients, each = 4, 16, 20
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
			upstream.EnableHTTP2 = protocol == "HTTP/2.0"
			upstream.StartTLS()
			t.Cleanup(upstream.Close)
			transport := proxy.NewTransport(proxy.TransportConfig{MaxConns: most})
			transport.TLSClientConfig.RootCAs = x509.NewCertPool()
			transport.TLSClientConfig.RootCAs.AddCert(upstream.Certificate())
			var open atomic.Int32
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if n := open.Add(1); n > most {
					t.Errorf("%d connections", n)
				}
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return &closing{Conn: conn, closed: func() { open.Add(-1) }}, err
			}
			s := start(t, upstream.URL, proxy.Config{Transport: transport})
			var running sync.WaitGroup
			for range clients {
				running.Go(func() {
					for range each {
						if resp, err := s.Client().Get(s.URL); err != nil || resp.StatusCode != http.StatusOK || read(t, resp.Body) != protocol {
							t.Errorf("answered %v, %v", resp, err)
						}
					}
				})
			}
			running.Wait()
		})
	}
}
