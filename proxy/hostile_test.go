package proxy_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/token-sidecar/token-sidecar/proxy"
)

var hostile = flag.Int("hostile", 3000, "how many mutated requests TestMutatedRequestsBreakNoRule sends")

const local = "Host: localhost:8080\r\n"

// guarded is a proxy as it is on a loopback address.
var guarded = proxy.Config{Guard: proxy.Guard{Hosts: []string{"127.0.0.1"}}}

// legitimate are requests that pass as they are, but for our own fields.
var legitimate = []string{
	"GET / HTTP/1.1\r\n" + local + "\r\n",
	"HEAD /a/b?c=d HTTP/1.1\r\n" + local + "Accept: */*\r\nUser-Agent: old/1\r\n\r\n",
	"GET //a///b//?a=1;b=2&c=%zz&d=%00&e=../.. HTTP/1.1\r\n" + local + "Cookie: a=b; c=\"d\"\r\n\r\n",
	"GET /a%2Fb%2fc/%41%C3%A9/%25zz/100%25 HTTP/1.1\r\n" + local + "\r\n",
	"GET /a%250 HTTP/1.1\r\n" + local + "\r\n",
	"GET /a|b^c{d}\"<e>`é\xff/x%2Fy?q=a|b^c{d}'\"`<>\xff HTTP/1.1\r\n" + local + "\r\n",
	"GET /.well-known/x/..a/a../.../a.b;v=1/;x/..a;b/.a HTTP/1.1\r\n" + local + "\r\n",
	"GET /a%20../..%20b/.%20b/%c0/%c0.%c0/%e0%80./%c3%a0/%e0%a0%80/%f0%90%80%80/%fe%ff/\xc0../%20.. HTTP/1.1\r\n" + local + "\r\n",
	"GET /a:b@c!$&'()*+,=~_- HTTP/1.1\r\n" + local + "\r\n",
	"GET /?a?b#c HTTP/1.1\r\n" + local + "\r\n",
	"GET /x? HTTP/1.1\r\n" + local + "\r\n",
	"PROPFIND /x HTTP/1.1\r\n" + local + "Depth: 1\r\n\r\n",
	"get /lower HTTP/1.1\r\n" + local + "\r\n",
	"POST /orders HTTP/1.1\r\n" + local + "Content-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"a\": \"b\"}\n",
	"POST /orders HTTP/1.1\r\n" + local + "Content-Length: 0\r\n\r\n",
	"PUT /orders HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
	"PATCH /orders HTTP/1.1\r\n" + local + "TE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
	"GET /chat HTTP/1.1\r\n" + local + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
	"GET /forwarded HTTP/1.1\r\n" + local + "X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nForwarded: for=192.0.2.1\r\nVia: 1.1 a\r\n\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: LOCALHOST.\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "X-Empty:\r\nX-Tab: a\tb\r\nX-Octets: \xe9\xff\r\nAccept-Encoding: br\r\n\r\n",
	"GET /repeated HTTP/1.1\r\n" + local + "Accept: b/c\r\nX-A: 2\r\nAccept: a/b\r\nX-A: 1\r\nCookie: c=d\r\nCookie: a=b\r\n\r\n",
	"DELETE /orders/7 HTTP/1.1\r\n" + local + "If-Match: \"e\"\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "X-HTTP-Method-Override: PUT\r\nX-Original-URL: /a\r\n\r\n",
	"OPTIONS /orders HTTP/1.1\r\n" + local + "Origin: https://shop.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
}

func TestEveryLegitimateRequestPassesByteForByte(t *testing.T) {
	tr := newTrial(t, guarded)
	for _, says := range legitimate {
		if reached, compared := tr.judge(t, says); reached != 1 || compared != 1 {
			t.Errorf("%q: %d requests arrived, %d compared", says, reached, compared)
			continue
		}
		answer, arrivals := tr.send(t, says)
		a := arrivals[0]
		if !strings.Contains(answer, " 200 OK\r\n") {
			t.Errorf("%q: answered %q", says, answer)
		}
		head, _, _ := strings.Cut(says, "\r\n\r\n")
		var want []string
		for i, text := range strings.Split(head, "\r\n") {
			name, value, _ := strings.Cut(text, ":")
			if i > 0 && !strings.EqualFold(name, "Host") {
				want = append(want, strings.ToLower(name)+": "+strings.TrimSpace(value))
			}
		}
		var got []string
		for _, f := range a.fields {
			if f.name != "Host" && f.name != "Authorization" {
				got = append(got, strings.ToLower(f.name)+": "+f.value)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if a.method+" "+a.target != head[:strings.Index(head, " HTTP/1.")] || !slices.Equal(got, want) {
			t.Errorf("sent %q, arrived %+v", says, *a)
		}
	}
}

// blocked are requests that must not reach the upstream, with the status that
// they are answered instead.
var blocked = map[string]int{
	// methods
	"TRACE / HTTP/1.1\r\n" + local + "\r\n":                          405,
	"trace / HTTP/1.1\r\n" + local + "\r\n":                          405,
	"TRACK / HTTP/1.1\r\n" + local + "\r\n":                          405,
	"CONNECT localhost:8080 HTTP/1.1\r\n" + local + "\r\n":           405,
	"CONNECT /x HTTP/1.1\r\n" + local + "\r\n":                       405,
	"Connect /x HTTP/1.1\r\n" + local + "\r\n":                       405,
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                               405,
	"PRI /x HTTP/1.1\r\n" + local + "\r\n":                           405,
	"TRACE / HTTP/1.1\r\n" + local + "Content-Length: 4\r\n\r\nbody": 405,
	// targets
	"GET http:x HTTP/1.1\r\n" + local + "\r\n":                       400,
	"GET http:/x HTTP/1.1\r\n" + local + "\r\n":                      400,
	"GET mailto:a@b HTTP/1.1\r\n" + local + "\r\n":                   400,
	"GET http://localhost/ HTTP/1.1\r\n" + local + "\r\n":            400,
	"GET http://other.test/ HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET http://user:pass@other.test/ HTTP/1.1\r\n" + local + "\r\n": 400,
	"GET * HTTP/1.1\r\n" + local + "\r\n":                            400,
	"OPTIONS * HTTP/1.1\r\n" + local + "\r\n":                        400,
	"GET orders HTTP/1.1\r\n" + local + "\r\n":                       400,
	"GET ?a HTTP/1.1\r\n" + local + "\r\n":                           400,
	"GET \\x HTTP/1.1\r\n" + local + "\r\n":                          400,
	// paths
	"GET /../x HTTP/1.1\r\n" + local + "\r\n":               400,
	"GET /a/.. HTTP/1.1\r\n" + local + "\r\n":               400,
	"GET /a/../x HTTP/1.1\r\n" + local + "\r\n":             400,
	"GET /a/./x HTTP/1.1\r\n" + local + "\r\n":              400,
	"GET /. HTTP/1.1\r\n" + local + "\r\n":                  400,
	"GET /..?x HTTP/1.1\r\n" + local + "\r\n":               400,
	"GET /a/%2e%2e/x HTTP/1.1\r\n" + local + "\r\n":         400,
	"GET /a/.%2E/x HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET /a%2f..%2fx HTTP/1.1\r\n" + local + "\r\n":         400,
	"GET /a/..%2fx HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET /a/%252e%252e/x HTTP/1.1\r\n" + local + "\r\n":     400,
	"GET /a/%25252e./x HTTP/1.1\r\n" + local + "\r\n":       400,
	"GET /a/%25%32e./x HTTP/1.1\r\n" + local + "\r\n":       400,
	"GET /a/..;/x HTTP/1.1\r\n" + local + "\r\n":            400,
	"GET /a/..;v=1/x HTTP/1.1\r\n" + local + "\r\n":         400,
	"GET /a/..%3bv=1/x HTTP/1.1\r\n" + local + "\r\n":       400,
	"GET /a/.;/x HTTP/1.1\r\n" + local + "\r\n":             400,
	"GET /a\\..\\x HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET /a%5c..%5cx HTTP/1.1\r\n" + local + "\r\n":         400,
	"GET /a/..#x HTTP/1.1\r\n" + local + "\r\n":             400,
	"GET /a/..%3Fx HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET /a/..%20/x HTTP/1.1\r\n" + local + "\r\n":          400,
	"GET /a/..%20 HTTP/1.1\r\n" + local + "\r\n":            400,
	"GET /a/.%2520/x HTTP/1.1\r\n" + local + "\r\n":         400,
	"GET /a/..%20.%20/x HTTP/1.1\r\n" + local + "\r\n":      400,
	"GET /a/..%20;x HTTP/1.1\r\n" + local + "\r\n":          400,
	"GET /a/%c0%ae%c0%ae/x HTTP/1.1\r\n" + local + "\r\n":   400,
	"GET /a/\xc0\xae./x HTTP/1.1\r\n" + local + "\r\n":      400,
	"GET /a/%25c0%25ae./x HTTP/1.1\r\n" + local + "\r\n":    400,
	"GET /a/%e0%80%ae./x HTTP/1.1\r\n" + local + "\r\n":     400,
	"GET /a/%f0%80%80%ae./x HTTP/1.1\r\n" + local + "\r\n":  400,
	"GET /a/%f8%80%80%80%ae. HTTP/1.1\r\n" + local + "\r\n": 400,
	"GET /%fc%80%80%80%80%ae HTTP/1.1\r\n" + local + "\r\n": 400,
	"GET /a..%c0%af../x HTTP/1.1\r\n" + local + "\r\n":      400,
	"GET /a/..%c1%9cx HTTP/1.1\r\n" + local + "\r\n":        400,
	"GET /a/%c0%a52e./x HTTP/1.1\r\n" + local + "\r\n":      400,
	"GET /a/..%c0%a0/x HTTP/1.1\r\n" + local + "\r\n":       400,
	"GET /a%c0%80b HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET //.. HTTP/1.1\r\n" + local + "\r\n":                400,
	"GET /a%2F../x| HTTP/1.1\r\n" + local + "\r\n":          400,
	"GET /a%00b HTTP/1.1\r\n" + local + "\r\n":              400,
	"GET /a%0d%0ab HTTP/1.1\r\n" + local + "\r\n":           400,
	"GET /a%2500b HTTP/1.1\r\n" + local + "\r\n":            400,
	"GET /a%7f HTTP/1.1\r\n" + local + "\r\n":               400,
	"GET /a\x00b HTTP/1.1\r\n" + local + "\r\n":             400,
	"GET /a\x7fb HTTP/1.1\r\n" + local + "\r\n":             400,
	"GET //a|b HTTP/1.1\r\n" + local + "\r\n":               400,
	// names
	"GET / HTTP/1.1\r\nHost: attacker.test\r\n\r\n":              421,
	"GET / HTTP/1.1\r\nHost: attacker.test:8080\r\n\r\n":         421,
	"GET / HTTP/1.1\r\nHost: localhost.attacker.test\r\n\r\n":    421,
	"GET / HTTP/1.1\r\nHost: localhost@attacker.test\r\n\r\n":    400,
	"GET / HTTP/1.1\r\nHost: localhost:80@attacker.test\r\n\r\n": 400,
	"GET / HTTP/1.1\r\nHost: 127.0.0.1.attacker.test\r\n\r\n":    421,
	"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n":                  421,
	"GET / HTTP/1.1\r\nHost: [::2]\r\n\r\n":                      421,
	"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n":                       421,
	"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n":                        421,
	"GET / HTTP/1.1\r\nHost: 0.0.0.0\r\n\r\n":                    421,
	"GET / HTTP/1.1\r\n" + local + "Host: attacker.test\r\n\r\n": 400,
	"GET / HTTP/1.1\r\n\r\n":                                     400,
	// fields
	"GET / HTTP/1.1\r\n" + local + "Authorization_: Bearer evil\r\n\r\n":                                                                         400,
	"GET / HTTP/1.1\r\n" + local + "_Authorization: Bearer evil\r\n\r\n":                                                                         400,
	"GET / HTTP/1.1\r\n" + local + "X_Forwarded_For: 192.0.2.1\r\n\r\n":                                                                          400,
	"GET / HTTP/1.1\r\n" + local + "Authorization : Bearer evil\r\n\r\n":                                                                         400,
	"GET / HTTP/1.1\r\n" + local + "X-A: \x00\r\n\r\n":                                                                                           400,
	"GET / HTTP/1.1\r\n" + local + "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n\r\n":                                              403,
	"POST / HTTP/1.1\r\n" + local + "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 0\r\n\r\n":                     403,
	"POST / HTTP/1.1\r\n" + local + "Trailer: X_Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX_Sum: 1\r\n\r\n":                                  400,
	"POST / HTTP/1.1\r\n" + local + "Trailer: X-Sum, Authorization\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer evil\r\n\r\n": 400,
	"POST / HTTP/1.1\r\n" + local + "Trailer: cookie\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nCookie: a=b\r\n\r\n":                              400,
	"POST / HTTP/1.1\r\n" + local + "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n":                400,
	"POST / HTTP/1.1\r\n" + local + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!":                                                        400,
	"POST / HTTP/1.1\r\n" + local + "Content-Length: +4\r\n\r\nbody":                                                                             400,
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n":                                                      501,
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n":                                                               501,
	"GET / HTTP/1.1\r\n" + local + "X-Long: " + strings.Repeat("x", 100<<10) + "\r\n\r\n":                                                        431,
}

func TestWhatMustNotEnterIsRefused(t *testing.T) {
	tr := newTrial(t, guarded)
	for says, want := range blocked {
		answer, arrivals := tr.send(t, says)
		if len(arrivals) > 0 || !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", want)) {
			t.Errorf("%.100q: answered %.100q, %d arrived", says, answer, len(arrivals))
		}
	}
}

// doubtful are requests that may pass, or not, but must do no harm.
var doubtful = []string{
	"GET / HTTP/1.1\r\n" + local + "Authorization: Bearer evil\r\nAuthorization: Basic evil\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "aUTHORIZATION: Bearer\r\n evil\r\nConnection: close, authorization\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Connection: Authorization, Host, Content-Length, Upgrade, TE\r\nUpgrade: websocket\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
	"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nTE: gzip, trailers\r\n\r\n",
	"GET / HTTP/1.1\r\n" + local + "Pragma: no-cache\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nAuthorization: Bearer evil\r\nHost: evil\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + local + "\r\n",
	"POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\n\r\n4;ext=\"a\"\r\nbody\r\n00000000000\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\n\r\n4\nbody\n0\n\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nbody\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Transfer-Encoding: chunked\r\n\r\n4\r\nbodyX\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Content-Length: 100\r\n\r\nbegun",
	"GET / HTTP/1.1\r\n" + local + "Content-Length: 5\r\n\r\nGET / HTTP/1.1\r\n" + local + "\r\n",
	"GET /one HTTP/1.1\r\n" + local + "\r\nGET /two HTTP/1.1\r\n" + local + "\r\nTRACE / HTTP/1.1\r\n" + local + "\r\n",
	"GET / HTTP/1.1\n" + "Host: localhost\n\n",
	"GET / HTTP/1.1\r\n" + local + " folded: a\r\nX-A: b\r\n\tc\r\n\r\n",
	"\r\n\r\nGET / HTTP/1.1\r\n" + local + "\r\n",
	"GET  / HTTP/1.1\r\n" + local + "\r\n",
	"GET /a b HTTP/1.1\r\n" + local + "\r\n",
	"GET / HTTP/1.2\r\n" + local + "\r\n",
	"GET / HTTP/2.0\r\n" + local + "\r\n",
	"GET /\r\n",
	"GET / HTTP/1.1\r\n" + local + "Expect: 200-ok\r\n\r\n",
	"POST / HTTP/1.1\r\n" + local + "Expect: 100-continue\r\nConnection: expect\r\nContent-Length: 4\r\n\r\nbody",
	strings.Repeat("M", 2000) + " / HTTP/1.1\r\n" + local + "\r\n",
	"GET /" + strings.Repeat("%25", 300) + "2e HTTP/1.1\r\n" + local + "\r\n",
}

// seeds are all of them, in the same order each time.
func seeds() []string {
	all := slices.Concat(legitimate, doubtful)
	for says := range blocked {
		if len(says) < 4<<10 {
			all = append(all, says)
		}
	}
	slices.Sort(all)
	return all
}

func TestDoubtfulRequestsDoNoHarm(t *testing.T) {
	tr := newTrial(t, guarded)
	for _, says := range doubtful {
		tr.judge(t, says)
	}
}

// TestMutatedRequestsBreakNoRule sends the same requests each time. Far more
// than in every test run are sent by
//
//	go test ./proxy -run Mutated -v -hostile 150000
func TestMutatedRequestsBreakNoRule(t *testing.T) {
	var sent, reached, compared atomic.Int64
	var workers sync.WaitGroup
	all := seeds()
	for range 2 * runtime.GOMAXPROCS(0) {
		tr := newTrial(t, guarded)
		workers.Go(func() {
			for n := sent.Add(1); n <= int64(*hostile) && !t.Failed(); n = sent.Add(1) {
				chance := rand.New(rand.NewPCG(uint64(n), 0))
				r, c := tr.judge(t, mutated(chance, all))
				reached.Add(int64(r))
				compared.Add(int64(c))
			}
		})
	}
	workers.Wait()
	t.Logf("%d requests, %d of which reached the origin, %d of them such that every byte is known", *hostile, reached.Load(), compared.Load())
	if compared.Load() < int64(*hostile)/20 {
		t.Error("hardly anything was compared, so this shows nothing")
	}
}

func FuzzRequestsBreakNoRule(f *testing.F) {
	for _, says := range seeds() {
		f.Add(says)
	}
	tr := newTrial(f, guarded)
	f.Fuzz(func(t *testing.T, says string) { tr.judge(t, says) })
}

// words are what requests are twisted with.
var words = []string{
	"\r\n", "\n", "\r", "\x00", "\t", " ", ":", ";", ",", "/", "\\", "?", "#", "%", "_", ".", "..", "/../", "/..;/", "%2e", "%2E", "%2f", "%5c", "%252e", "..%20/", "%c0%ae", "%c0%af", "\xc0\xae", "\xe0\x80\xae", "%00", "%0d%0a", "//",
	"TRACE", "CONNECT", "PRI", "OPTIONS", "*", "http://evil.test/", "@", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0",
	"Authorization: Bearer evil\r\n", "Authorization: ", "Connection: Authorization\r\n", "Connection: close\r\n", "Connection: Upgrade\r\n", "Upgrade: websocket\r\n", "Upgrade: h2c\r\n",
	"Host: evil.test\r\n", "Content-Length: 4\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Trailer: Authorization\r\n", "X_A: b\r\n", "TE: trailers\r\n",
	"Cookie: a=b\r\n", "If-Match: \"e\"\r\n", "Accept: a/b\r\n", "Content-Type: a/b\r\n", "User-Agent: a\r\n", "Sec-Fetch-Site: cross-site\r\n", "Pragma: no-cache\r\n", "Connection: Cookie\r\n", "X-Forwarded-For: a\r\n",
	"Expect: 100-continue\r\n", "0\r\n\r\n", "4\r\nbody\r\n", "\r\n\r\n", "\r\n ", "chunked", "é", "\xff", "|", "GET / HTTP/1.1\r\n" + local + "\r\n",
}

// mutated returns a request made of one or two of all.
func mutated(chance *rand.Rand, all []string) string {
	says := all[chance.IntN(len(all))]
	if chance.IntN(2) == 0 { // or hardly anything would get past the first look
		says = legitimate[chance.IntN(len(legitimate))]
	}
	for range 1 + chance.IntN(3) {
		at := chance.IntN(len(says) + 1)
		end := min(len(says), at+1+chance.IntN(12))
		word := words[chance.IntN(len(words))]
		switch chance.IntN(9) {
		case 0:
			says = says[:at] + word + says[at:]
		case 1:
			says = says[:at] + word + says[end:]
		case 2:
			says = says[:at] + says[end:]
		case 3:
			says = says[:end] + says[at:]
		case 4:
			says = says[:at] + string([]byte{byte(chance.IntN(256))}) + says[min(len(says), at+1):]
		case 5:
			other := all[chance.IntN(len(all))]
			says = says[:at] + other[chance.IntN(len(other)+1):]
		case 6:
			says = says[:at] + swapCase(says[at:end]) + says[end:]
		case 7:
			says = says[:at] + fmt.Sprintf("%%%02x", says[at:min(len(says), at+1)]) + says[min(len(says), at+1):]
		case 8: // a line of its own
			if i := strings.Index(says, "\r\n"); i >= 0 {
				says = says[:i+2] + word + says[i+2:]
			}
		}
	}
	return says
}

func swapCase(s string) string {
	if upper := strings.ToUpper(s); upper != s {
		return upper
	}
	return strings.ToLower(s)
}
