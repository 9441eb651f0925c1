package proxy_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// An upstream that closes idle connections after five seconds, as Node.js
// does, never closes one that a POST is just being sent on.
func TestNoPOSTMeetsAClosingConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		var dialled atomic.Int32
		origin := &http.Server{
			Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }),
			IdleTimeout: 5 * time.Second,
		}
		go func() { _ = origin.Serve(network) }()
		defer func() { _ = origin.Close() }()
		transport := proxy.NewTransport(proxy.TransportConfig{})
		transport.DialContext = func(ctx context.Context, network_, addr string) (net.Conn, error) {
			dialled.Add(1)
			return network.Dial(ctx, network_, addr)
		}
		defer transport.CloseIdleConnections()
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "http", Host: "api.test"}, Tokens: &tokens{token: canary}, Transport: transport,
		})
		for gap := 3 * time.Second; gap <= 6*time.Second; gap += 10 * time.Millisecond {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader("body")))
			if got, want := fmt.Sprint(w.Code, w.Body), "200 body"; got != want {
				t.Fatalf("a gap of %v: answered %s, want %s", gap, got, want)
			}
			time.Sleep(gap)
		}
		if got := dialled.Load(); got < 200 || got > 202 { // once for each gap of 4 s or more
			t.Errorf("%d connections", got)
		}
	})
}

func TestConnectionsInUseAreKept(t *testing.T) {
	const clients, each = 64, 30
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	var connections atomic.Int32
	upstream.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	upstream.Start()
	t.Cleanup(upstream.Close)
	s := start(t, upstream.URL, proxy.Config{})
	var running sync.WaitGroup
	for range clients {
		conn, from := s.dial(t, "")
		running.Go(func() {
			for range each {
				_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody")
				resp, err := http.ReadResponse(from, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "body" || resp.StatusCode != http.StatusOK {
					t.Errorf("answered %d, %q, %v", resp.StatusCode, got, err)
				}
			}
		})
	}
	running.Wait()
	if got := connections.Load(); got > 2*clients {
		t.Errorf("%d connections for %d requests of %d clients", got, clients*each, clients)
	}
}

// TestMain has named a proxy that there is not.
func TestOnlyAProxyOfTheConfigurationGetsRequests(t *testing.T) {
	seen := make(chan string, 1)
	relay := serve(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.RequestURI })
	target, err := url.Parse(relay.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := http.ProxyFromEnvironment(httptest.NewRequest("GET", "http://api.test/", nil)); err != nil || got == nil {
		t.Fatalf("the environment names %v, %v", got, err)
	}
	for _, test := range []struct {
		name       string
		proxy      func(*http.Request) (*url.URL, error)
		addr, want string
	}{
		{"none", nil, "api.test:80", "/x"},
		{"one", http.ProxyURL(target), target.Host, "http://api.test/x"},
		{"the environment's", http.ProxyFromEnvironment, "proxy.invalid:3128", "http://api.test/x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			transport := proxy.NewTransport(proxy.TransportConfig{Proxy: test.proxy})
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if got, want := addr, test.addr; got != want {
					t.Errorf("dialled %s, want %s", got, want)
				}
				return new(net.Dialer).DialContext(ctx, network, target.Host)
			}
			s := start(t, "http://api.test", proxy.Config{Transport: transport})
			if got, want := s.send(t, "GET", "/x", nil).StatusCode, http.StatusOK; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
			if got := <-seen; got != test.want {
				t.Errorf("asked for %s, want %s", got, test.want)
			}
		})
	}
}

// overPipe makes a transport to an upstream of HTTP/2 in a bubble of fake time.
func overPipe(t *testing.T, h http.HandlerFunc) (*http.Transport, *httptest.Server) {
	network := granttest.NewPipe()
	upstream := httptest.NewUnstartedServer(h)
	_ = upstream.Listener.Close()
	upstream.Listener, upstream.EnableHTTP2 = network, true
	upstream.StartTLS()
	transport := proxy.NewTransport(proxy.TransportConfig{})
	transport.DialContext = network.Dial
	transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	transport.TLSClientConfig.RootCAs.AddCert(upstream.Certificate())
	return transport, upstream
}

// A lossy connection takes what is written, and may deliver none of it.
type lossy struct {
	net.Conn
	lost *atomic.Bool
}

func (c lossy) Write(p []byte) (int, error) {
	if c.lost.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func TestAConnectionThatIsDeadIsFoundOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport, upstream := overPipe(t, func(http.ResponseWriter, *http.Request) {})
		defer upstream.Close()
		defer transport.CloseIdleConnections()
		dial := transport.DialContext
		var lost *atomic.Bool // of the newest connection
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			lost = new(atomic.Bool)
			return lossy{conn, lost}, err
		}
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "https", Host: "example.com"}, Tokens: &tokens{token: canary}, Transport: transport,
		})
		begin := time.Now()
		for _, want := range []int{http.StatusOK, http.StatusBadGateway, http.StatusOK} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
			if w.Code != want {
				t.Errorf("status = %d after %v, want %d", w.Code, time.Since(begin), want)
			}
			lost.Store(true)
		}
		if took := time.Since(begin); took != 20*time.Second {
			t.Errorf("it took %v, want 20 s without a sign of life", took)
		}
		lost.Store(false)
	})
}

func TestAHandshakeIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := proxy.NewTransport(proxy.TransportConfig{})
		far, near := net.Pipe()
		defer func() { _ = far.Close() }()
		go func() { _, _ = io.Copy(io.Discard, far) }() // and says nothing
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return near, nil }
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "https", Host: "api.test"}, Tokens: &tokens{token: canary}, Transport: transport,
		})
		begin := time.Now()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
		if took := time.Since(begin); w.Code != http.StatusGatewayTimeout || took != 5*time.Second {
			t.Errorf("status = %d after %v, want 504 after 5 s", w.Code, took)
		}
	})
}

func TestTheHeadOfAnAnswerIsBounded(t *testing.T) {
	for size, want := range map[int]int{60 << 10: http.StatusOK, 66 << 10: http.StatusBadGateway} {
		eachProtocol(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Large", strings.Repeat("x", size))
		}, func(t *testing.T, s *sidecar) {
			if got := s.send(t, "GET", "/", nil).StatusCode; got != want {
				t.Errorf("%d bytes: status = %d, want %d", size, got, want)
			}
		})
	}
}

// Small fields that all differ take the most: there are maps to hold them.
func TestTheWorstHeadOfAnAnswerTakesLessThan8MiB(t *testing.T) {
	var head strings.Builder
	for n := 0; head.Len() < 63<<10; n++ {
		head.WriteString(strconv.FormatInt(int64(n), 36) + ":\r\n")
	}
	s := start(t, serve(t, hijack(t, "HTTP/1.1 200 OK\r\n"+head.String()+"Content-Length: 0\r\n\r\n")).URL, proxy.Config{})
	const times = 10
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
		if _, err := io.Copy(io.Discard, from); err != nil {
			t.Fatal(err)
		}
		s.recorder.wants(t, "GET 200")
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / times; got > 8<<20 {
		t.Errorf("%d KiB for each answer", got>>10)
	}
}
