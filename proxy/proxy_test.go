package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

func TestTheAuthorizationSentIsOneAndOurs(t *testing.T) {
	addr, heads := headOf(t)
	s := start(t, "http://"+addr, proxy.Config{})
	for name, fields := range map[string]string{
		"none":             "",
		"one":              "Authorization: Basic eDp5\r\n",
		"several":          "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
		"odd case":         "aUTHORIZATION: Bearer a\r\n",
		"empty":            "Authorization:\r\n",
		"folded":           "Authorization: Bearer\r\n a\r\n",
		"proxy":            "Proxy-Authorization: Bearer a\r\nProxy-Authenticate: Basic\r\n",
		"hop by hop":       "Authorization: Bearer a\r\nConnection: authorization\r\n",
		"hop by hop, list": "Connection: keep-alive, AUTHORIZATION,\r\nAuthorization: Bearer a\r\n",
		"upgrade":          "Connection: authorization, Upgrade\r\nUpgrade: websocket\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\n"+fields+"\r\n")
			resp := answer(t, from, "GET")
			if got, want := resp.StatusCode, http.StatusNoContent; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
			var got []string
			for line := range strings.Lines(<-heads) {
				if strings.Contains(strings.ToLower(line), "auth") {
					got = append(got, strings.TrimSpace(line))
				}
			}
			if want := []string{"Authorization: Bearer " + canary}; !slices.Equal(got, want) {
				t.Errorf("sent %q, want %q", got, want)
			}
		})
	}
}

func TestTheTokenIsNotInAnyAnswer(t *testing.T) {
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, r.URL.Path)
		w.Header().Set("X-Sum", "1")
	})
	s := start(t, upstream.URL, proxy.Config{})
	for _, err := range []error{nil, errors.New("none")} {
		s.tokens.set(canary, err)
		_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
		if got := read(t, from); got == "" || strings.Contains(got, "canary") {
			t.Errorf("answered %q", got)
		}
	}
}

func TestAPIAcceptsTheTokenOfTheMoment(t *testing.T) {
	authorization := &granttest.Server{}
	upstream := serve(t, authorization.ServeHTTP)
	s := start(t, upstream.URL, proxy.Config{})
	body := strings.Repeat("0123456789abcdef", 1<<12)
	for number := 1; number <= 2; number++ {
		s.tokens.set(accessToken(t, upstream.URL), nil)
		for range 2 {
			var got granttest.Echo
			decode(t, s.send(t, "PUT", "/orders/7?x=1", strings.NewReader(body), "Authorization", "Bearer stale"), &got)
			if want := (granttest.Echo{
				Method: "PUT", URI: "/orders/7?x=1", Host: strings.TrimPrefix(upstream.URL, "http://"), TokenNumber: number,
				Headers: http.Header{"Content-Length": {"65536"}}, BodyLength: 65536, BodySHA256: digest(body),
			}); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the API got %+v, want %+v", got, want)
			}
		}
	}
}

func TestOnlyA401ThatConcernsTheTokenInvalidatesIt(t *testing.T) {
	const invalid, scope = `Bearer error="invalid_token"`, `Bearer realm="x", error="insufficient_scope", scope="admin"`
	for _, test := range []struct {
		status     int
		challenges []string
		want       []string
	}{
		{401, []string{invalid}, []string{canary}},
		{401, nil, []string{canary}},
		{401, []string{"Basic", "Bearer"}, []string{canary}},
		{401, []string{scope}, nil},
		{401, []string{"Basic", scope}, nil},
		{200, nil, nil},
		{403, []string{invalid}, nil},
		{407, nil, nil},
		{500, nil, nil},
	} {
		t.Run(fmt.Sprint(test.status, test.challenges), func(t *testing.T) {
			upstream := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Www-Authenticate"] = test.challenges
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, "sorry")
			})
			s := start(t, upstream.URL, proxy.Config{})
			resp := s.send(t, "POST", "/", strings.NewReader("body"))
			if got, want := fmt.Sprint(resp.StatusCode, resp.Header["Www-Authenticate"], read(t, resp.Body)),
				fmt.Sprint(test.status, test.challenges, "sorry"); got != want {
				t.Errorf("answered %s, want %s", got, want)
			}
			if got := s.tokens.invalidated(); !slices.Equal(got, test.want) {
				t.Errorf("invalidated %q, want %q", got, test.want)
			}
			s.recorder.wants(t, fmt.Sprint("POST ", test.status))
		})
	}
}

// What is passed on as it came.

func TestARequestHeadArrivesAsItWasSent(t *testing.T) {
	const sent = "Host: app.local:8080\r\n"
	for _, test := range []struct {
		name, base   string
		line, fields string
		want         string // the target
		wantFields   string // without Host and Authorization
	}{
		{name: "nothing added", line: "GET / HTTP/1.1", want: "/"},
		{name: "query", line: "GET /?a=1;b=2&c=%zz&d HTTP/1.1", want: "/?a=1;b=2&c=%zz&d"},
		{name: "odd query", line: "GET /?q=a|b^c{d}'\"`<>é HTTP/1.1", want: "/?q=a|b^c{d}'\"`<>é"},
		{name: "question mark in the query", line: "GET /?a?b#c HTTP/1.1", want: "/?a?b#c"},
		{name: "empty query", line: "GET /x? HTTP/1.1", want: "/x?"},
		{name: "escaped slash", line: "GET /a%2Fb%2fc/%41%C3%A9 HTTP/1.1", want: "/a%2Fb%2fc/%41%C3%A9"},
		{name: "slashes", line: "GET //a///b// HTTP/1.1", want: "//a///b//"},
		{name: "base path", base: "/v3", line: "GET /a%2Fb?c HTTP/1.1", want: "/v3/a%2Fb?c"},
		{name: "base path with a slash", base: "/v3/", line: "GET /a HTTP/1.1", want: "/v3/a"},
		{name: "base path with an escape", base: "/v%2F3", line: "GET //a HTTP/1.1", want: "/v%2F3//a"},
		{name: "base slash", base: "/", line: "GET //a HTTP/1.1", want: "//a"},
		{name: "forwarding headers", line: "GET / HTTP/1.1", want: "/",
			fields:     "X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nX-Forwarded-For: 192.0.2.3\r\nX-Forwarded-Host: shop\r\nX-Forwarded-Proto: https\r\nForwarded: for=192.0.2.1\r\nVia: 1.1 a\r\n",
			wantFields: "Forwarded: for=192.0.2.1\nVia: 1.1 a\nX-Forwarded-For: 192.0.2.1, 192.0.2.2\nX-Forwarded-For: 192.0.2.3\nX-Forwarded-Host: shop\nX-Forwarded-Proto: https"},
		{name: "end to end headers", line: "GET / HTTP/1.1", want: "/",
			fields:     "Accept-Encoding: br\r\nCookie: a=b\r\nTE: trailers\r\nUser-Agent: old/1\r\nX-Empty:\r\nX-Api-Key: k\r\n",
			wantFields: "Accept-Encoding: br\nCookie: a=b\nTe: trailers\nUser-Agent: old/1\nX-Api-Key: k\nX-Empty:"},
		{name: "hop by hop headers", line: "GET / HTTP/1.1", want: "/",
			fields: "Connection: close, x-hop\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nTE: gzip\r\nTrailer: X-A\r\nX-Hop: 1\r\nUpgrade: h2c\r\n"},
		{name: "a body without bytes", line: "POST / HTTP/1.1", want: "/", fields: "Content-Length: 0\r\n", wantFields: "Content-Length: 0"},
		{name: "an unusual method", line: "PROPFIND /x HTTP/1.1", want: "/x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, heads := headOf(t)
			s := start(t, "http://"+addr+test.base, proxy.Config{})
			_, from := s.dial(t, test.line+"\r\n"+sent+test.fields+"\r\n")
			answer(t, from, "GET")
			method, _, _ := strings.Cut(test.line, " ")
			want := []string{"Authorization: Bearer " + canary, "Host: " + addr}
			if test.wantFields != "" {
				want = append(want, strings.Split(test.wantFields, "\n")...)
			}
			slices.Sort(want)
			want = slices.Insert(want, 0, method+" "+test.want+" HTTP/1.1")
			if got, want := <-heads, strings.Join(want, "\n"); got != want {
				t.Errorf("the upstream got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAnAnswerArrivesAsItWasGiven(t *testing.T) {
	const zipped = "\x1f\x8b not to be unpacked"
	for _, test := range []struct{ name, method, head, body string }{
		{"fields", "GET", "200 OK\r\nContent-Length: 2\r\nContent-Type: x/y\r\nX-A: 1\r\nX-A: 2\r\nSet-Cookie: a=b\r\nServer: x", "ok"},
		{"no type", "GET", "200 OK\r\nContent-Length: 13", "<html></html>"},
		{"gzip", "GET", "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: " + strconv.Itoa(len(zipped)), zipped},
		{"redirect", "GET", "302 Found\r\nLocation: http://other.test/\r\nContent-Length: 0", ""},
		{"redirect of a body", "POST", "307 Temporary Redirect\r\nLocation: http://other.test/\r\nContent-Length: 0", ""},
		{"refresh", "GET", "200 OK\r\nRefresh: 0; url=http://other.test/\r\nContent-Length: 0", ""},
		{"client error", "GET", "404 Not Found\r\nContent-Length: 2", "no"},
		{"too many requests", "GET", "429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0", ""},
		{"server error", "GET", "503 Service Unavailable\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Length: 4", "busy"},
		{"status without a name", "GET", "599 status code 599\r\nContent-Length: 0", ""},
		{"HEAD", "HEAD", "200 OK\r\nContent-Length: 1234\r\nContent-Type: x/y", ""},
		{"204", "DELETE", "204 No Content\r\nX-A: 1", ""},
		{"304", "GET", "304 Not Modified\r\nEtag: \"e\"", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			head := "HTTP/1.1 " + test.head + "\r\nDate: now\r\n\r\n"
			s := start(t, serve(t, hijack(t, head+test.body)).URL, proxy.Config{})
			_, from := s.dial(t, test.method+" / HTTP/1.1\r\nHost: app\r\n\r\n")
			if got, want := sorted(readHead(from)), sorted(head); got != want {
				t.Errorf("the client got\n%s\nwant\n%s", got, want)
			}
			expect(t, from, test.body)
			s.recorder.wants(t, test.method+" "+test.head[:3])
		})
	}
}

// sorted returns a head with its field lines in order.
func sorted(head string) string {
	lines := strings.Split(strings.TrimSpace(head), "\r\n")
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}

func TestTheDefaultsDo(t *testing.T) {
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	})
	target, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	source := &tokens{token: canary}
	s := httptest.NewServer(proxy.New(proxy.Config{Upstream: target, Tokens: source}))
	defer s.Close()
	for err, want := range map[error]int{nil: http.StatusOK, errors.New("none"): http.StatusServiceUnavailable} {
		source.set(canary, err)
		resp, err := http.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.StatusCode; got != want {
			t.Errorf("status = %d, want %d", got, want)
		}
	}
}
