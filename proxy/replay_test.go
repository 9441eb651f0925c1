package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const second = "canary-token.2"

// acceptsSecond is an API that refuses all tokens but the second, early, late
// or in the middle of the body, and else answers with the body's digest.
func acceptsSecond(t testing.TB, lookAfter int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 { // or the server would read the whole body before it sends the 401
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Connection", "close")
		}
		body := &strings.Builder{}
		if _, err := io.CopyN(body, r.Body, lookAfter); err != nil && err != io.EOF {
			t.Errorf("body: %v", err)
		}
		if r.Header.Get("Authorization") != "Bearer "+second {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, "refused")
			return
		}
		if _, err := io.Copy(body, r.Body); err != nil {
			t.Errorf("rest of the body: %v", err)
		}
		_, _ = fmt.Fprint(w, r.Method, " ", digest(body.String()), " ", r.Trailer.Get("X-Sum"))
	}
}

// unsized hides the length of a body.
type unsized struct{ io.Reader }

func TestARefusedRequestIsSentAgainWithAnotherToken(t *testing.T) {
	for when, lookAfter := range map[string]int64{"before the body": 0, "in its middle": 5000, "after it": 1 << 20} {
		t.Run(when, func(t *testing.T) {
			eachProtocol(t, acceptsSecond(t, lookAfter), func(t *testing.T, s *sidecar) {
				for _, size := range []int{0, 1, 4 << 10, 10_000, 16 << 10, 64 << 10} {
					for _, sized := range []bool{true, false} {
						s.tokens.set(canary, nil)
						s.tokens.next = second
						content := strings.Repeat("0123456789", size/10+1)[:size]
						var body io.Reader = strings.NewReader(content)
						if !sized {
							body = unsized{body}
						}
						resp := s.send(t, "POST", "/", body)
						if got, want := fmt.Sprint(resp.StatusCode, " ", read(t, resp.Body)), "200 POST "+digest(content)+" "; got != want {
							t.Errorf("%d bytes, sized %v: got %s, want %s", size, sized, got, want)
						}
						s.recorder.wantsRefusals(t, "replayed")
					}
				}
				s.tokens.set(canary, nil)
				if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusOK {
					t.Errorf("GET: got %d", got)
				}
			})
		})
	}
}

func TestTheSecondSendingNeedsNoConnectionOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+second {
				w.WriteHeader(http.StatusUnauthorized)
				flush(t, w)
				time.Sleep(40 * time.Millisecond)
				_, _ = io.WriteString(w, strings.Repeat("refused ", 500))
			}
		})}
		go func() { _ = api.Serve(network) }()
		defer func() { _ = api.Close() }()
		dialled := 0
		transport := proxy.NewTransport(proxy.TransportConfig{})
		transport.DialContext = func(ctx context.Context, network_, addr string) (net.Conn, error) {
			dialled++
			return network.Dial(ctx, network_, addr)
		}
		defer transport.CloseIdleConnections()
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "http", Host: "api.test"}, Tokens: &tokens{token: canary, next: second}, Transport: transport,
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
		if w.Code != http.StatusOK || dialled != 1 {
			t.Errorf("status = %d with %d connections, want 200 with 1", w.Code, dialled)
		}
	})
}

func TestTheRestOfABodyIsFetchedForTheSecondSending(t *testing.T) {
	eachProtocol(t, acceptsSecond(t, 3), func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		conn, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n")
		for len(s.tokens.invalidated()) == 0 {
			time.Sleep(time.Millisecond)
		}
		say(t, conn, "3\r\ndef\r\n0\r\nX-Sum: 6\r\n\r\n")
		resp := answer(t, from, "POST")
		if got, want := fmt.Sprint(resp.StatusCode, " ", read(t, resp.Body)), "200 POST "+digest("abcdef")+" 6"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestABodyTooLargeToKeepIsNotSentAgain(t *testing.T) {
	eachProtocol(t, acceptsSecond(t, 1<<20), func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		for _, sized := range []bool{true, false} {
			s.tokens.set(canary, nil)
			var body io.Reader = strings.NewReader(strings.Repeat("x", 64<<10+1))
			if !sized {
				body = unsized{body}
			}
			resp := s.send(t, "POST", "/", body)
			if got := fmt.Sprint(resp.StatusCode, read(t, resp.Body)); got != "401refused" {
				t.Errorf("got %s, want the upstream's own answer", got)
			}
			s.recorder.wantsRefusals(t, "not_repeatable")
			if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusOK {
				t.Errorf("the next request: got %d, want it to have the new token", got)
			}
		}
	})
}

func TestWithoutAnotherTokenTheUpstreamsAnswerPasses(t *testing.T) {
	eachProtocol(t, acceptsSecond(t, 1<<20), func(t *testing.T, s *sidecar) {
		resp := s.send(t, "POST", "/", strings.NewReader("body"))
		if got := fmt.Sprint(resp.StatusCode, read(t, resp.Body), resp.Header.Get("WWW-Authenticate")); got != `401refusedBearer error="invalid_token"` {
			t.Errorf("got %s", got)
		}
		s.recorder.wantsRefusals(t, "no_other_token")
	})
}

func TestABodyIsAskedForOnceByContinueThoughItIsSentTwice(t *testing.T) {
	eachProtocol(t, acceptsSecond(t, 0), func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		conn, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		expect(t, from, "HTTP/1.1 100 Continue\r\n\r\n")
		say(t, conn, "body")
		resp := answer(t, from, "POST")
		if got, want := fmt.Sprint(resp.StatusCode, " ", read(t, resp.Body)), "200 POST "+digest("body")+" "; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// renewals is a TokenSource that always has another token.
type renewals struct{ count atomic.Int64 }

func (r *renewals) AccessToken(context.Context) (string, error) {
	return fmt.Sprint("canary-token.", r.count.Load()), nil
}
func (r *renewals) Invalidate(string) { r.count.Add(1) }

func TestAnUpstreamThatRefusesEveryTokenIsLeftAlone(t *testing.T) {
	var requests atomic.Int64
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.WriteHeader(http.StatusUnauthorized)
	})
	source := &renewals{}
	s := start(t, upstream.URL, proxy.Config{Tokens: source})
	for range 500 {
		if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusUnauthorized {
			t.Fatalf("got %d", got)
		}
	}
	if got := requests.Load(); got > 600 {
		t.Errorf("500 requests became %d, want 1.2 times as many at most", got)
	}
	if got := source.count.Load(); got != 1 {
		t.Errorf("got %d renewals, want 1 a minute", got)
	}
	s.recorder.wantsRefusals(t, append([]string{"replayed"}, slices.Repeat([]string{"muted"}, 499)...)...)
}

func TestATokenThatHasWorkedIsReplacedEachTimeItIsRefused(t *testing.T) {
	var live atomic.Pointer[string]
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+*live.Load() {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	source := &renewals{}
	s := start(t, upstream.URL, proxy.Config{Tokens: source})
	for n := range 10 {
		token := fmt.Sprint("canary-token.", n)
		live.Store(&token)
		for range 3 {
			if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusOK {
				t.Fatalf("token %d: got %d", n, got)
			}
		}
	}
}

func TestManyRefusalsAtOnceAreAllMended(t *testing.T) {
	eachProtocol(t, acceptsSecond(t, 1<<20), func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				content := strings.Repeat(fmt.Sprint(i, " "), 500)
				resp, err := s.Client().Post(s.URL, "text/plain", strings.NewReader(content))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if got, want := read(t, resp.Body), "POST "+digest(content)+" "; got != want {
					t.Errorf("got %d %s, want %s", resp.StatusCode, got, want)
				}
			})
		}
		wg.Wait()
	})
}

func TestRequestsThatCannotBeSentAgainAreWaitedFor(t *testing.T) {
	large := strings.Repeat("x", 64<<10+1)
	for _, test := range []struct {
		name   string
		body   io.Reader
		waited bool
	}{
		{"none", nil, false},
		{"as large as can be kept", strings.NewReader(large[1:]), false},
		{"larger", strings.NewReader(large), true},
		{"of unknown length", unsized{strings.NewReader("body")}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			arrived, release := make(chan struct{}), make(chan struct{})
			upstream := serve(t, func(http.ResponseWriter, *http.Request) {
				close(arrived)
				<-release
			})
			unrepeatable := &proxy.InFlight{}
			s := start(t, upstream.URL, proxy.Config{Unrepeatable: unrepeatable})
			unrepeatable.Wait(t.Context()) // there are none yet

			done := make(chan struct{})
			go func() {
				defer close(done)
				s.send(t, "POST", "/", test.body)
			}()
			<-arrived
			patience := map[bool]time.Duration{true: 10 * time.Millisecond, false: 10 * time.Second}[test.waited]
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			unrepeatable.Wait(ctx)
			if got := ctx.Err() != nil; got != test.waited {
				t.Errorf("waited for: %v, want %v", got, test.waited)
			}
			close(release)
			<-done
			unrepeatable.Wait(t.Context())
		})
	}
}

func TestAReplayedBodyArrivesWholeAlthoughTheAnswerBeginsEarly(t *testing.T) {
	content := strings.Repeat("0123456789", 6000)
	eachProtocol(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+second {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		w.WriteHeader(http.StatusOK)
		flush(t, w)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("the second sending: %v after %d bytes", err, len(body))
		}
		_, _ = io.WriteString(w, digest(string(body)))
	}, func(t *testing.T, s *sidecar) {
		for range 20 {
			s.tokens.set(canary, nil)
			s.tokens.next = second
			if got, want := read(t, s.send(t, "POST", "/", strings.NewReader(content)).Body), digest(content); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
}

func TestAnAnswerThatIsHeldUpDelaysNoReplay(t *testing.T) {
	release := make(chan struct{})
	eachProtocol(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+second {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusUnauthorized)
			flush(t, w)
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}, func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusOK {
			t.Errorf("got %d", got)
		}
	})
	close(release)
}

// relay is a TokenSource that gives out these tokens in turn, and the last of
// them for ever.
type relay struct {
	mu      sync.Mutex
	tokens  []string
	refused int
}

func (r *relay) AccessToken(context.Context) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	token := r.tokens[0]
	if len(r.tokens) > 1 {
		r.tokens = r.tokens[1:]
	}
	return token, nil
}

func (r *relay) Invalidate(string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused++
}

func TestAForbiddenRouteSpoilsNoRotation(t *testing.T) {
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/forbidden" || r.Header.Get("Authorization") != "Bearer "+second {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	source := &relay{tokens: []string{canary, second, second}} // the second is refused as well, for that route
	s := start(t, upstream.URL, proxy.Config{Tokens: source})
	for range 10 {
		if got := s.send(t, "GET", "/forbidden", nil).StatusCode; got != http.StatusUnauthorized {
			t.Errorf("the forbidden route: got %d", got)
		}
	}
	if source.refused != 1 {
		t.Errorf("%d tokens were given up for a route that accepts none, want 1", source.refused)
	}
	source.tokens = []string{canary, second} // a rotation overtakes a request
	if got := s.send(t, "GET", "/", nil).StatusCode; got != http.StatusOK {
		t.Errorf("a request with the token before: got %d", got)
	}
}
