package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// ready is a source of tokens that has one.
type ready struct{}

func (ready) Ready() error    { return nil }
func (ready) Contested() bool { return false }

// ask returns the status of an answer of the admin port, and the methods that
// it says are allowed.
func ask(t *testing.T, h http.Handler, method, path string, fields ...string) string {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	r.Host = cmp.Or(r.Header.Get("Host"), "localhost")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("Allow")))
}

func TestTheAdminPortIsReadOnly(t *testing.T) {
	h := adminHandler(&probes{tokens: ready{}}, prometheus.NewRegistry(), nil)
	for _, path := range []string{"/livez", "/readyz", "/startupz", "/metrics"} {
		for _, method := range []string{"GET", "HEAD"} {
			if got := ask(t, h, method, path); got != "200" {
				t.Errorf("%s %s: %s", method, path, got)
			}
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"} {
			if got, want := ask(t, h, method, path), "405 GET, HEAD"; got != want {
				t.Errorf("%s %s: %s, want %s", method, path, got, want)
			}
		}
	}
	for _, path := range []string{"/", "/quitquitquit", "/debug/pprof/", "/debug/vars", "/token", "/config"} {
		for _, method := range []string{"GET", "POST"} {
			if got := ask(t, h, method, path); got != "404" {
				t.Errorf("%s %s: %s", method, path, got)
			}
		}
	}
}

func TestTheAdminPortIsNotForWebPages(t *testing.T) {
	quits := 0
	cfg := config{AdminAddress: "admin.test:9090", AllowedHosts: []string{"Sidecar.ns.svc"}}
	h := ownServer(cfg, zap.NewNop(), adminHandler(&probes{tokens: ready{}}, prometheus.NewRegistry(), func() { quits++ }), cfg.adminGuard()).Handler
	for _, test := range []struct{ method, path, field, value, want string }{
		{"GET", "/livez", "Host", "10.0.0.7:9090", "200"}, // as the kubelet asks
		{"GET", "/livez", "Host", "[fd00::7]:9090", "200"},
		{"GET", "/livez", "Host", "LOCALHOST:9090", "200"},
		{"GET", "/metrics", "Host", "admin.test:9090", "200"},
		{"GET", "/metrics", "Host", "sidecar.ns.svc.:9090", "200"},
		{"GET", "/metrics", "Host", "attacker.test:9090", "421"}, // whose name leads here
		{"GET", "/metrics", "Host", "127.0.0.1.attacker.test", "421"},
		{"POST", "/quitquitquit", "Host", "attacker.test", "421"},
		{"GET", "/metrics", "Sec-Fetch-Site", "none", "200"}, // typed in by hand
		{"GET", "/metrics", "Sec-Fetch-Site", "cross-site", "403"},
		{"GET", "/metrics", "Sec-Fetch-Site", "same-site", "403"},
		{"GET", "/metrics", "Origin", "https://attacker.test", "403"},
		{"GET", "/metrics", "Origin", "null", "403"},
		{"POST", "/quitquitquit", "Origin", "http://attacker.test:9090", "403"},
		{"POST", "/quitquitquit", "Sec-Fetch-Site", "cross-site", "403"},
		{"GET", "/quitquitquit", "Host", "localhost", "405 POST"},
	} {
		if got := ask(t, h, test.method, test.path, test.field, test.value); got != test.want {
			t.Errorf("%s %s with %s %s: %s, want %s", test.method, test.path, test.field, test.value, got, test.want)
		}
	}
	if quits > 0 {
		t.Error("a web page has ended the sidecar")
	}
	if got := ask(t, h, "POST", "/quitquitquit"); got != "200" || quits != 1 {
		t.Errorf("answered %s, ended %d times", got, quits)
	}
}

func TestTheDebugPortIsCalledByLoopbackAlone(t *testing.T) {
	h := ownServer(config{}, zap.NewNop(), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), loopbackNames).Handler
	for host, want := range map[string]string{
		"127.0.0.1:6060": "200", "[::1]:6060": "200", "localhost": "200", "10.0.0.7:6060": "421", "attacker.test:6060": "421", "[::1": "421",
	} {
		if got := ask(t, h, "GET", "/debug/pprof/", "Host", host); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}

func TestWhoReadsNoAnswerKeepsNobodyFromTheAdminPort(t *testing.T) {
	const large = 200 << 10 // more than /metrics ever is
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, large))
	})
	s, l := newAdminServer(config{}, zap.NewNop(), h), listener(t)
	served, closed := make(chan error), make(chan struct{})
	s.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			close(closed)
		}
	}
	go func() { served <- s.Serve(roomyListener{l}) }()
	elsewhere := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // where segments are small, as on a network
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536) })
	}}
	conn, err := elsewhere.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_, _ = io.WriteString(conn, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 10))
	<-closed
	answers, err := io.ReadAll(conn)
	if got := len(answers); err != nil || got < large || got > 2*large {
		t.Errorf("got %d bytes, %v", got, err)
	}
	_ = s.Close()
	<-served
}

// Whoever reaches a port has no way to keep others from it.
func TestAnAnnouncedBodyIsNotWaitedFor(t *testing.T) {
	debug := listener(t)
	cfg, err := loadConfig(map[string]string{"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "https://auth.test", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer serveDebug(cfg, zap.NewNop(), debug)()
	r := runApp(t, func(http.ResponseWriter, *http.Request) {}, "ADMIN_QUIT=true")
	for port, path := range map[string]string{r.admin: "/livez", debug.Addr().String(): "/debug/pprof/"} {
		for range adminConnections {
			for _, body := range []string{"Content-Length: 100\r\n\r\nbegun", "Transfer-Encoding: chunked\r\n\r\n"} {
				conn, err := net.Dial("tcp", port)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: localhost\r\n"+body)
			}
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: ownPatience / 2}
		resp, err := client.Get("http://" + port + path)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: answered %v, %v", path, resp, err)
		}
		resp.Body.Close()
	}
	r.ends(t)
}

// Nor does who takes nothing of an answer.
func TestAnAnswerThatNobodyTakesDoesNotKeepOthersOut(t *testing.T) {
	withStack(t, exampleEnv(t, "makini.env"), granttest.Makini("your_client_id", "your_client_secret"), func(s *stack) {
		debug := granttest.NewPipe()
		defer serveDebug(config{}, zap.NewNop(), debug)()
		for path, port := range map[string]*granttest.Pipe{"/metrics": s.ownPort, "/debug/pprof/": debug} {
			c := &crowd{t: s.t, network: port}
			for range adminConnections {
				visitor := c.comes()
				defer visitor.Close()
				go visitor.asks(path)
			}
			late := c.comes()
			_ = late.SetDeadline(time.Now().Add(2 * ownPatience))
			late.asks(path)
			late.answered()
		}
	})
}
