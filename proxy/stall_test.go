package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const patience = time.Minute

// inBubble runs test in a bubble of fake time, with the network of a
// proxy that may lose its patience. Neither it nor its upstream has TLS.
func inBubble(t *testing.T, p protocols, handler func(proxy.Config) http.Handler, upstream http.HandlerFunc, test func(t *testing.T, network *granttest.Pipe, r *recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		far, near := granttest.NewPipe(), granttest.NewPipe()
		api := &http.Server{Handler: upstream, Protocols: only(p.upstream)}
		transport := proxy.NewTransport(proxy.TransportConfig{PlainHTTP2: p.upstream == 2})
		transport.DialContext = far.Dial
		recorder := newRecorder()
		server := &http.Server{Protocols: only(p.client), Handler: handler(proxy.Config{
			Upstream: &url.URL{Scheme: "http", Host: "api.test"}, Tokens: &tokens{token: canary}, Transport: transport, BodyPatience: patience, Recorder: recorder,
		})}
		go func() { _ = api.Serve(far) }()
		go func() { _ = server.Serve(near) }()
		defer func() { // also after a fatal error, or the bubble would hide it
			_ = server.Close()
			transport.CloseIdleConnections()
			_ = api.Close()
		}()
		test(t, near, recorder)
	})
}

// only is HTTP/1.1 or HTTP/2, without TLS.
func only(major int) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(major == 1)
	p.SetUnencryptedHTTP2(major == 2)
	return p
}

// withClient runs test in a bubble, with a client that says what it is told to.
func withClient(t *testing.T, upstream http.HandlerFunc, test func(t *testing.T, client net.Conn, from *bufio.Reader, r *recorder)) {
	t.Helper()
	withClientOf(t, proxy.New, upstream, test)
}

// withClientOf does so with another handler than proxy.New makes.
func withClientOf(t *testing.T, handler func(proxy.Config) http.Handler, upstream http.HandlerFunc, test func(t *testing.T, client net.Conn, from *bufio.Reader, r *recorder)) {
	t.Helper()
	inBubble(t, protocols{client: 1, upstream: 1}, handler, upstream, func(t *testing.T, network *granttest.Pipe, recorder *recorder) {
		client, err := network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		test(t, client, bufio.NewReader(client), recorder)
	})
}

// withStreams runs test in a bubble, with a client of HTTP/2.
func withStreams(t *testing.T, upstream http.HandlerFunc, test func(t *testing.T, client *http.Client)) {
	t.Helper()
	withStreamsOf(t, proxy.New, upstream, test)
}

// withStreamsOf does so with another handler than proxy.New makes.
func withStreamsOf(t *testing.T, handler func(proxy.Config) http.Handler, upstream http.HandlerFunc, test func(t *testing.T, client *http.Client)) {
	t.Helper()
	inBubble(t, protocols{client: 2, upstream: 2}, handler, upstream, func(t *testing.T, network *granttest.Pipe, _ *recorder) {
		transport := &http.Transport{DialContext: network.Dial, Protocols: only(2)}
		defer transport.CloseIdleConnections()
		test(t, &http.Client{Transport: transport})
	})
}

func drain(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

func TestAClientThatSendsNothingOfItsBodyIsGivenUp(t *testing.T) {
	for _, begun := range []string{
		"Content-Length: 100\r\n\r\n",
		"Content-Length: 100\r\n\r\nbegun",
		"Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
	} {
		t.Run(begun, func(t *testing.T) {
			withClient(t, drain, func(t *testing.T, client net.Conn, from *bufio.Reader, recorder *recorder) {
				start := time.Now()
				say(t, client, "POST / HTTP/1.1\r\nHost: app\r\n"+begun)
				resp := answer(t, from, "POST")
				wantsOwn(t, resp, http.StatusRequestTimeout, "request_stalled", "http_request_error", map[string]any{})
				if took := time.Since(start); took < patience || took > patience*5/4 || !resp.Close {
					t.Errorf("after %v, the connection is closed: %v", took, resp.Close)
				}
				if _, err := io.Copy(io.Discard, from); err != nil || time.Since(start) > patience*5/4 {
					t.Errorf("closed after %v, %v, want at once after the answer", time.Since(start), err)
				}
				recorder.wants(t, "POST 408")
				if got, want := fmt.Sprint(recorder.failed()), "[request_stalled]"; got != want {
					t.Errorf("failures = %s, want %s", got, want)
				}
			})
		})
	}
}

// The server reads what is left of a body, even where it will close the
// connection.
func TestWhatIsLeftOfABodyIsNotWaitedForInVain(t *testing.T) {
	for begin, want := range map[string]struct {
		status int
		within time.Duration
	}{
		"POST /":      {http.StatusForbidden, patience},
		"POST /a/../": {http.StatusBadRequest, 5 * time.Second},
	} {
		t.Run(begin, func(t *testing.T) {
			refuse := func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Connection", "close") // or it would read the body first
				w.WriteHeader(http.StatusForbidden)
			}
			withClient(t, refuse, func(t *testing.T, client net.Conn, from *bufio.Reader, recorder *recorder) {
				start := time.Now()
				say(t, client, begin+" HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nbegun")
				if got := answer(t, from, "POST").StatusCode; got != want.status || time.Since(start) > 0 {
					t.Errorf("status = %d after %v, want %d at once", got, time.Since(start), want.status)
				}
				_, err := io.Copy(io.Discard, from)
				if took := time.Since(start); err != nil || took > want.within+time.Second {
					t.Errorf("closed after %v, %v, want %v", took, err, want.within)
				}
			})
		})
	}
}

// unlimited is a proxy that never loses its patience.
func unlimited(cfg proxy.Config) http.Handler {
	cfg.BodyPatience = 0
	return proxy.New(cfg)
}

func TestWithoutALimitWhatIsLeftOfABodyMayComeAtAnyTime(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusForbidden)
	}
	withClientOf(t, unlimited, refuse, func(t *testing.T, client net.Conn, from *bufio.Reader, _ *recorder) {
		say(t, client, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nbegun")
		if got, want := answer(t, from, "POST").StatusCode, http.StatusForbidden; got != want {
			t.Errorf("status = %d, want %d", got, want)
		}
		time.Sleep(time.Hour)
		say(t, client, "ended")
	})
}

func TestASlowBodyArrivesWhole(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprint(w, string(body), err)
	}
	for pause, handler := range map[time.Duration]func(proxy.Config) http.Handler{patience - time.Second: proxy.New, time.Hour: unlimited} {
		withClientOf(t, handler, echo, func(t *testing.T, client net.Conn, from *bufio.Reader, _ *recorder) {
			say(t, client, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n")
			for i := range 10 {
				time.Sleep(pause)
				say(t, client, fmt.Sprint(i))
			}
			if got, want := read(t, answer(t, from, "POST").Body), "0123456789<nil>"; got != want {
				t.Errorf("the upstream got %s, want %s", got, want)
			}
		})
	}
}

func TestARefusalGoesOnAlthoughTheClientPauses(t *testing.T) {
	refuse := func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		expect(t, r.Body, "begun")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		flush(t, w)
		time.Sleep(time.Hour)
		_, _ = io.WriteString(w, "too large")
	}
	for _, p := range []protocols{{client: 1, upstream: 1}, {client: 1, upstream: 2}} {
		inBubble(t, p, proxy.New, refuse, func(t *testing.T, network *granttest.Pipe, _ *recorder) {
			client, err := network.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			say(t, client, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nbegun")
			expect(t, answer(t, bufio.NewReader(client), "POST").Body, "too large")
		})
	}
}

func TestWhoWaitsForAnAnswerIsNotHurried(t *testing.T) {
	poll := func(w http.ResponseWriter, r *http.Request) {
		drain(w, r)
		time.Sleep(time.Hour)
		_, _ = io.WriteString(w, "news")
		flush(t, w)
		time.Sleep(time.Hour)
		_, _ = io.WriteString(w, " at last")
	}
	withClient(t, poll, func(t *testing.T, client net.Conn, from *bufio.Reader, _ *recorder) {
		for _, request := range []string{
			"GET / HTTP/1.1\r\nHost: app\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody",
			"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
		} {
			say(t, client, request)
			if got, want := read(t, answer(t, from, "POST").Body), "news at last"; got != want {
				t.Errorf("answered %s, want %s", got, want)
			}
			time.Sleep(time.Hour) // and the connection is as good as before
		}
	})
}

func TestARequestLivesOnAfterTheProxyHasServedIt(t *testing.T) {
	around := func(cfg proxy.Config) http.Handler {
		h := proxy.New(cfg)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			synctest.Wait()
			if err := r.Context().Err(); err != nil {
				t.Errorf("%s of %d bytes: %v", r.Method, r.ContentLength, err)
			}
		})
	}
	withClientOf(t, around, drain, func(t *testing.T, client net.Conn, from *bufio.Reader, recorder *recorder) {
		for _, request := range []string{
			"GET / HTTP/1.1\r\nHost: app\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody",
			"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
		} {
			say(t, client, request)
			if got, want := answer(t, from, "POST").StatusCode, http.StatusOK; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
		}
	})
}

func TestAConversationMayPause(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		flush(t, w)
		for line := make([]byte, 5); ; flush(t, w) {
			if _, err := io.ReadFull(r.Body, line); err != nil {
				return
			}
			_, _ = w.Write(line)
		}
	}
	withClient(t, echo, func(t *testing.T, client net.Conn, from *bufio.Reader, _ *recorder) {
		say(t, client, "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n")
		resp := answer(t, from, "POST")
		for range 3 {
			time.Sleep(time.Hour)
			say(t, client, "5\r\nhello\r\n")
			expect(t, resp.Body, "hello")
		}
		say(t, client, "0\r\n\r\n")
		expect(t, resp.Body, "")
	})
}

func TestATunnelMayPause(t *testing.T) {
	echo := func(w http.ResponseWriter, _ *http.Request) {
		conn, from, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, from)
	}
	withClient(t, echo, func(t *testing.T, client net.Conn, from *bufio.Reader, _ *recorder) {
		say(t, client, "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		answer(t, from, "GET")
		for range 3 {
			time.Sleep(time.Hour)
			say(t, client, "ping")
			expect(t, from, "ping")
		}
	})
}
