package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// running is a sidecar on sockets, before an upstream that does as h does.
type running struct {
	address, admin string
	log            *lockedBuffer
	stop           context.CancelFunc
	done           chan error
}

func runApp(t *testing.T, h http.HandlerFunc, environ ...string) *running {
	t.Helper()
	provider := &granttest.Server{}
	mux := http.NewServeMux()
	mux.Handle("POST /oauth/token", provider.TokenEndpoint())
	mux.Handle("/", provider.Protect(h))
	upstream := httptest.NewUnstartedServer(mux)
	upstream.Config.Protocols = &http.Protocols{}
	upstream.Config.Protocols.SetHTTP1(true)
	upstream.Config.Protocols.SetUnencryptedHTTP2(true)
	upstream.Start()
	t.Cleanup(upstream.Close)
	settings := map[string]string{
		"UPSTREAM_URL": upstream.URL, "TOKEN_URL": upstream.URL + "/oauth/token", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none",
	}
	for _, s := range environ {
		name, value, _ := strings.Cut(s, "=")
		settings[name] = value
	}
	cfg, err := loadConfig(settings)
	if err != nil {
		t.Fatal(err)
	}
	local, admin := listener(t), listener(t)
	r := &running{address: local.Addr().String(), admin: admin.Addr().String(), log: &lockedBuffer{}, done: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	a := newApp(cfg, newLogger(r.log, zap.DebugLevel), nil)
	go func() { r.done <- a.serve(ctx, local, admin) }()
	t.Cleanup(func() { t.Log(r.log) })
	return r
}

// ends stops the sidecar, which must not fail.
func (r *running) ends(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *running) dial(t *testing.T, request string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), bufio.NewReader(c)
}

func TestAClientThatClosesItsSideGetsItsAnswer(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	r := runApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- struct{}{}
		select {
		case <-proceed:
			_, _ = w.Write(body)
		case <-r.Context().Done():
			t.Error("the request was given up")
		}
	})
	for _, request := range []string{
		"GET / HTTP/1.0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
		"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
	} {
		c, answer := r.dial(t, request)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		<-arrived
		proceed <- struct{}{}
		resp, err := http.ReadResponse(answer, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%q: %v %v", request, resp, err)
			continue
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Errorf("%q: %v", request, err)
		}
		if rest, err := io.ReadAll(answer); err != nil || len(rest) > 0 {
			t.Errorf("%q: after the answer: %q, %v, want the end", request, rest, err)
		}
	}
	r.ends(t)
}

func TestAClientThatHasLeftIsGivenUpInTheWiredSidecar(t *testing.T) {
	givenUp := make(chan struct{})
	r := runApp(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(givenUp)
	}, "HALF_CLOSE_TIMEOUT=20ms")
	c, _ := r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-givenUp
	r.ends(t)
}

func TestABodyThatBreaksOffIsNotTakenForAHalfClosedClient(t *testing.T) {
	ended := make(chan struct{})
	r := runApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		close(ended)
	})
	c, _ := r.dial(t, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
	_ = c.CloseWrite()
	<-ended
	r.ends(t)
}

func TestTunnelsAreCutOffAtTheDeadline(t *testing.T) {
	r := runApp(t, func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		_ = rw.Flush()
		_, _ = io.Copy(io.Discard, c)
	}, "DRAIN_TIMEOUT=50ms")
	_, answer := r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	if hello, err := answer.Peek(5); string(hello) != "hello" {
		t.Fatalf("through the tunnel: %q, %v", hello, err)
	}
	r.ends(t)
	if _, err := io.ReadAll(answer); err != nil {
		t.Errorf("the end of the tunnel: %v", err)
	}
	if !strings.Contains(r.log.String(), "cut off") {
		t.Errorf("log: %s", r.log)
	}
}

func TestServesOnThroughTheShutdownDelay(t *testing.T) {
	provider := granttest.AdminV3("your_client_id", "your_client_secret")
	environ := exampleEnv(t, "admin-v3.env")
	environ["SHUTDOWN_DELAY"] = "5s"
	withStack(t, environ, provider, func(s *stack) {
		s.get("/")
		s.stop()
		time.Sleep(4 * time.Second)
		s.get("/")
		w := httptest.NewRecorder()
		s.admin.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/readyz", nil))
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "shutting down") {
			t.Errorf("readyz during the delay: %d %s", w.Code, w.Body)
		}
	})
}

func TestASecretPutRightInPlaceIsUsedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	provider := granttest.AdminV3("your_client_id", "right canary")
	environ := exampleEnv(t, "admin-v3.env")
	delete(environ, "CLIENT_SECRET")
	environ["CLIENT_SECRET_FILE"] = path
	write("wrong\n")
	withStack(t, environ, provider, func(s *stack) {
		resp, err := s.app.Get("http://localhost/")
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
		write("right canary\n")
		time.Sleep(6 * time.Second)
		s.get("/")

		// Neither a wrong one nor one half written does harm while the token
		// lives, which it does for a quarter of an hour at least.
		for _, content := range []string{"", "wrong again\n"} {
			write(content)
			for range 14 {
				s.get("/")
				time.Sleep(time.Minute)
			}
			write("right canary\n")
			time.Sleep(6 * time.Second)
		}
		if got := provider.Stats(); got.MostAtOnce != 1 || got.Requests > 40 {
			t.Errorf("got %+v", got)
		}
		if s.get("/"); strings.Contains(s.log.String(), "wrong again") || strings.Contains(fmt.Sprint(s.log), "right canary\\n") {
			t.Error("a secret was logged")
		}
	})
}
