package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/proxy"
)

func TestARefusalSaysWhy(t *testing.T) {
	upstream := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was asked") })
	guard := proxy.Guard{Hosts: []string{"127.0.0.1"}, Methods: []string{"GET", "POST"}, Paths: []string{"/orders", "/items/7"}}
	for _, test := range []struct {
		request, reason, errorType string
		status                     int
		details                    map[string]any
	}{
		{"PUT /orders HTTP/1.1\r\nHost: localhost\r\n\r\n", "method_refused", "http_request_denied", 405, map[string]any{}},
		{"get /orders HTTP/1.1\r\nHost: localhost\r\n\r\n", "method_refused", "http_request_denied", 405, map[string]any{}},
		{"GET http://localhost/orders HTTP/1.1\r\nHost: localhost\r\n\r\n", "target_refused", `http_request_error; details="no_path"`, 400, map[string]any{"reason": "no_path"}},
		{"GET /orders/.. HTTP/1.1\r\nHost: localhost\r\n\r\n", "target_refused", `http_request_error; details="dot_segment"`, 400, map[string]any{"reason": "dot_segment"}},
		{"GET /orders/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", "target_refused", `http_request_error; details="control_character"`, 400, map[string]any{"reason": "control_character"}},
		{"GET /orders HTTP/1.1\r\nHost: attacker.test\r\n\r\n", "host_refused", "http_request_denied", 421, map[string]any{}},
		{"GET /orders HTTP/1.1\r\nHost: localhost\r\nX_A: b\r\n\r\n", "header_refused", `http_request_error; details="underscore"`, 400, map[string]any{"reason": "underscore"}},
		{"GET /orders HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n", "header_refused", `http_request_denied; details="cross_site"`, 403, map[string]any{"reason": "cross_site"}},
		{"GET /orders HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: PUT\r\n\r\n", "header_refused", `http_request_error; details="override"`, 400, map[string]any{"reason": "override"}},
		{"POST /orders HTTP/1.1\r\nHost: localhost\r\nTrailer: X-Sum, authorization\r\nTransfer-Encoding: chunked\r\n\r\n", "header_refused", `http_request_error; details="trailer"`, 400, map[string]any{"reason": "trailer"}},
		{"POST /orders HTTP/1.1\r\nHost: localhost\r\nTrailer: " + names(33) + "\r\nTransfer-Encoding: chunked\r\n\r\n", "header_refused", `http_request_error; details="trailers"`, 431, map[string]any{"reason": "trailers"}},
		{"GET /items HTTP/1.1\r\nHost: localhost\r\n\r\n", "path_refused", "http_request_denied", 403, map[string]any{}},
		{"POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nbegun", "path_refused", "http_request_denied", 403, map[string]any{}},
	} {
		s := start(t, upstream.URL, proxy.Config{Guard: guard})
		_, from := s.dial(t, test.request)
		resp := answer(t, from, "GET")
		wantsOwn(t, resp, test.status, test.reason, test.errorType, test.details)
		if got, want := resp.Header.Get("Allow"), map[bool]string{true: "GET, POST"}[test.status == 405]; got != want {
			t.Errorf("Allow = %q, want %q", got, want)
		}
		if got, want := resp.Close, strings.HasPrefix(test.request, "POST"); got != want {
			t.Errorf("%q: closes the connection: %v, want %v", test.request, got, want)
		}
		s.recorder.wants(t, fmt.Sprint(strings.Fields(test.request)[0], " ", test.status))
		if got, want := fmt.Sprint(s.recorder.failed()), "["+test.reason+"]"; got != want {
			t.Errorf("failures = %s, want %s", got, want)
		}
	}
}

// names are n different ones.
func names(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, "X-%d,", i)
	}
	return b.String()
}

func TestARefusalNamesWhatIsRefused(t *testing.T) {
	s := start(t, "http://127.0.0.1:1/v1", proxy.Config{Guard: proxy.Guard{Hosts: []string{"127.0.0.1"}, Methods: []string{"GET"}}})
	for request, want := range map[string]string{
		"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n":                                   `The method "PUT" is not in ALLOWED_METHODS, where upper and lower case differ.`,
		"Trace / HTTP/1.1\r\nHost: localhost\r\n\r\n":                                 `The method "Trace" is never allowed: it would let the client reach beyond requests.`,
		"GET / HTTP/1.1\r\nHost: gateway:80\r\n\r\n":                                  `The sidecar is not called by the name in Host, "gateway:80": add it to ALLOWED_HOSTS if it should be.`,
		"GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 1000) + "\r\n\r\n":           `The sidecar is not called by the name in Host, "` + strings.Repeat("a", 100) + `": add it to ALLOWED_HOSTS if it should be.`,
		"GET / HTTP/1.1\r\nHost: %d$&'()*+,;=!\r\n\r\n":                               `The sidecar is not called by the name in Host, "%d$&'()*+,;=!": add it to ALLOWED_HOSTS if it should be.`,
		"GET / HTTP/1.1\r\nHost: localhost\r\nx_token: canary\r\n\r\n":                `The field name "X_token" holds an underscore, which many servers cannot tell from a hyphen: ALLOW_UNDERSCORE_HEADERS=true lets it pass.`,
		"GET / HTTP/1.1\r\nHost: localhost\r\nX-Rewrite-URL: /canary\r\n\r\n":         `The field "X-Rewrite-Url" has some servers take the request for another, past ALLOWED_METHODS, ALLOWED_PATHS or the path of UPSTREAM_URL.`,
		"GET / HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: canary\r\n\r\n": `The field "X-Http-Method-Override" has some servers take the request for another, past ALLOWED_METHODS, ALLOWED_PATHS or the path of UPSTREAM_URL.`,
	} {
		_, from := s.dial(t, request)
		var got own
		decode(t, answer(t, from, "GET"), &got)
		if got.Message != want {
			t.Errorf("%q: answered %s, want %s", request, got.Message, want)
		}
	}
	for _, line := range s.logs.All() {
		if text := fmt.Sprint(line.Message, line.ContextMap()); strings.Contains(text, "gateway") || strings.Contains(text, "X_token") {
			t.Errorf("what a stranger sent is logged: %s", text)
		}
	}
}

func TestFieldsThatTurnARequestIntoAnotherAreRefusedWhereThatMatters(t *testing.T) {
	methods := []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"}
	paths := []string{"X-Original-URL", "X-Rewrite-URL"}
	for name, test := range map[string]struct {
		base    string
		guard   proxy.Guard
		refused []string
	}{
		"nothing is narrowed":     {"", proxy.Guard{}, nil},
		"nothing is narrowed, /":  {"/", proxy.Guard{}, nil},
		"methods":                 {"", proxy.Guard{Methods: []string{"POST"}}, methods},
		"paths":                   {"", proxy.Guard{Paths: []string{"/orders"}}, paths},
		"an upstream with a path": {"/v1", proxy.Guard{}, paths},
		"both":                    {"/v1/", proxy.Guard{Methods: []string{"POST"}}, slices.Concat(methods, paths)},
		"underscores": {"", proxy.Guard{Methods: []string{"POST"}, AllowUnderscores: true},
			[]string{"x_http_method_override", "X-HTTP_METHOD", "X-Method_Override", "X-HTTP-Method"}},
	} {
		tr := newTrial(t, proxy.Config{Guard: test.guard, Upstream: &url.URL{Scheme: "http", Host: originHost, Path: test.base}})
		for _, field := range slices.Concat(methods, paths, test.refused) {
			want := 1
			if slices.ContainsFunc(test.refused, func(f string) bool { return strings.EqualFold(f, field) }) || test.guard.AllowUnderscores && slices.Contains(methods, field) {
				want = 0
			}
			for _, request := range []string{
				field + ": x\r\nContent-Length: 0\r\n\r\n",
				"Trailer: " + field + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + field + ": x\r\n\r\n",
			} {
				answer, arrivals := tr.send(t, "POST /orders HTTP/1.1\r\n"+local+request)
				if len(arrivals) != want || want == 0 && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
					t.Errorf("%s, %q: %d arrived, answered %q", name, request, len(arrivals), answer)
				}
			}
		}
	}
}

func TestRequestsOfOtherSitesPassWhenTheyAreAllowed(t *testing.T) {
	tr := newTrial(t, proxy.Config{Guard: proxy.Guard{AllowCrossSite: true}})
	_, arrivals := tr.send(t, "GET / HTTP/1.1\r\n"+local+"Sec-Fetch-Site: cross-site\r\n\r\n")
	if len(arrivals) != 1 || arrivals[0].value("Sec-Fetch-Site") != "cross-site" {
		t.Errorf("arrived %+v", arrivals)
	}
}

func TestRefusalsAreLoggedOncePerReasonAndMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "http", Host: "api.test"}, Tokens: &tokens{}, Log: zap.New(core), Guard: proxy.Guard{Hosts: []string{"127.0.0.1"}},
		})
		for minute := range 3 {
			for n := range 100 {
				for target, host := range map[string]string{"/canary/../" + fmt.Sprint(n): "localhost", "/canary": fmt.Sprintf("canary%d.test", n)} {
					r := httptest.NewRequestWithContext(t.Context(), "GET", target, nil)
					r.Host = host
					h.ServeHTTP(httptest.NewRecorder(), r)
				}
			}
			if got, want := logs.Len(), 2*(minute+1); got != want {
				t.Errorf("%d lines in the end of minute %d, want %d", got, minute, want)
			}
			time.Sleep(time.Minute)
		}
		for _, line := range logs.All() {
			if strings.Contains(fmt.Sprint(line), "canary") {
				t.Errorf("what a stranger sent is logged: %v", line)
			}
		}
	})
}

func TestUnderscoresPassWhenTheyAreAllowed(t *testing.T) {
	tr := newTrial(t, proxy.Config{Guard: proxy.Guard{AllowUnderscores: true}})
	_, arrivals := tr.send(t, "POST / HTTP/1.1\r\n"+local+"X_Legacy: 1\r\nTrailer: X_Sum\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"1\r\na\r\n0\r\nX_Sum: 2\r\nproxy_authorization: evil\r\n\r\n")
	if len(arrivals) != 1 || arrivals[0].value("X_Legacy") != "1" {
		t.Fatalf("arrived %+v", arrivals)
	}
	if got, want := fmt.Sprint(arrivals[0].trailers), "[{X_sum 2}]"; got != want {
		t.Errorf("trailers %s, want %s", got, want)
	}
	answer, arrivals := tr.send(t, "POST / HTTP/1.1\r\n"+local+"Trailer: proxy_authorization\r\nTransfer-Encoding: chunked\r\n\r\n")
	if len(arrivals) != 0 || !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
		t.Errorf("a trailer that some take for Proxy-Authorization: %.100q, %d arrived", answer, len(arrivals))
	}
}

func TestWhatIsAllowedPasses(t *testing.T) {
	tr := newTrial(t, proxy.Config{Guard: proxy.Guard{Methods: []string{"GET"}, Paths: []string{"/orders"}, Hosts: []string{"", "gateway.test"}}})
	for _, says := range []string{
		"GET /orders HTTP/1.1\r\nHost: gateway.test\r\nTrailer: " + names(32) + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /orders?a=b HTTP/1.1\r\nHost: gateway.test\r\n\r\n",
		"GET /orders/7%2F8 HTTP/1.1\r\nHost: 10.0.0.7:8080\r\n\r\n",
	} {
		if n, _ := tr.judge(t, says); n != 1 {
			t.Errorf("%q: %d arrived", says, n)
		}
	}
}

// What net/url would escape anew, and in doing so turn %2F into a slash, is
// sent as it came.
func TestOddPathsArriveAsTheyWereSent(t *testing.T) {
	for _, test := range []struct{ base, path, want string }{
		{"", "/a%2Fb|c", "/a%2Fb|c"},
		{"/", "/a%2Fb|c", "/a%2Fb|c"},
		{"/v%2F1/", "/a%2Fb|c", "/v%2F1/a%2Fb|c"},
		{"/v1", "//a%2Fb\xe9", "/v1//a%2Fb\xe9"},
	} {
		upstream, err := url.Parse("http://" + originHost + test.base)
		if err != nil {
			t.Fatal(err)
		}
		_, arrivals := newTrial(t, proxy.Config{Upstream: upstream}).send(t, "GET "+test.path+"?q|r HTTP/1.1\r\n"+local+"\r\n")
		if len(arrivals) != 1 || arrivals[0].target != test.want+"?q|r" {
			t.Errorf("%s%s arrived as %+v", test.base, test.path, arrivals)
		}
	}
	tell := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) }
	eachProtocol(t, tell, func(t *testing.T, s *sidecar) {
		_, from := s.dial(t, "GET /a%2Fb|c?d HTTP/1.1\r\nHost: app\r\n\r\n")
		if got, want := read(t, answer(t, from, "GET").Body), "/a%2Fb|c?d"; got != want {
			t.Errorf("arrived as %s, want %s", got, want)
		}
	})
}

func TestOddPathsThatCannotBeSentAsTheyAreAreRefused(t *testing.T) {
	forward := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	target, err := url.Parse(forward.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "http://api.test", proxy.Config{ViaProxy: true, Transport: proxy.NewTransport(proxy.TransportConfig{Proxy: http.ProxyURL(target)})})
	for path, want := range map[string]int{"/a%2Fb|c": http.StatusBadRequest, "/a%2Fb": http.StatusOK} {
		_, from := s.dial(t, "GET "+path+" HTTP/1.1\r\nHost: app\r\n\r\n")
		if got := answer(t, from, "GET").StatusCode; got != want {
			t.Errorf("%s: status = %d, want %d", path, got, want)
		}
	}
}

// Clients such as Java's offer h2c with their first request, and take what
// they get. A tunnel they must not get, even from an upstream that agrees.
func TestOffersOfOtherProtocolsAreNotPassedOn(t *testing.T) {
	const switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	for _, fields := range []string{
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
	} {
		t.Run(fields, func(t *testing.T) {
			request := "GET / HTTP/1.1\r\nHost: app\r\n" + fields + "\r\n"
			addr, heads := headOf(t)
			s := start(t, "http://"+addr, proxy.Config{})
			_, from := s.dial(t, request)
			if got, want := answer(t, from, "GET").StatusCode, http.StatusNoContent; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
			if head := strings.ToLower(<-heads); strings.Contains(head, "upgrade") || strings.Contains(head, "http2-settings") {
				t.Errorf("the upstream got %s", head)
			}
			s = start(t, serve(t, hijack(t, switched)).URL, proxy.Config{})
			_, from = s.dial(t, request)
			if got, want := answer(t, from, "GET").StatusCode, http.StatusBadGateway; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
		})
	}
}
