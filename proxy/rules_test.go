package proxy

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestHostsAreComparedByNameAndAddress(t *testing.T) {
	loopback := []string{"127.0.0.1"}
	for _, test := range []struct {
		hosts []string
		host  string
		want  bool
	}{
		{nil, "anything.test", true},
		{[]string{"*"}, "anything.test:1", true},
		{[]string{"*"}, "not@all:x", true},
		{loopback, "", true},
		{loopback, "localhost", true},
		{loopback, "LocalHost.:8080", true},
		{loopback, "localhost:", true},
		{loopback, "localhost:9090", true},
		{loopback, "127.0.0.1:8080", true},
		{loopback, "127.255.0.9", true},
		{loopback, "[::1]:80", true},
		{loopback, "[::ffff:127.0.0.1]", true},
		{loopback, "10.0.0.7", false},
		{loopback, "localhost.test", false},
		{loopback, "localhost:80a", false},
		{loopback, "localhost:80:80", false},
		{loopback, "[localhost]x", false},
		{loopback, "[::1]x", false},
		{loopback, "[::1]:80a", false},
		{loopback, "[localhost:80", false},
		{loopback, "::1", false},
		{[]string{""}, "10.0.0.7:8080", true}, // LISTEN_ADDRESS=:8080
		{[]string{""}, "[2001:db8::7]:8080", true},
		{[]string{""}, "sidecar.test", false},
		{[]string{"0.0.0.0"}, "10.0.0.7:8080", true},
		{[]string{"::"}, "10.0.0.7:8080", true},
		{[]string{"10.0.0.7"}, "10.0.0.7", true},
		{[]string{"10.0.0.7"}, "10.0.0.8", false},
		{[]string{"2001:DB8::7"}, "[2001:db8:0::7]", true},
		{[]string{"", "gateway.ns.svc"}, "Gateway.ns.svc:80", true},
		{[]string{"", "gateway.ns.svc"}, "gateway.ns.svc.", true},
		{[]string{"", "gateway.ns.svc"}, "gateway.ns.svc.cluster.local", false},
	} {
		if got := (Guard{Hosts: test.hosts}).AllowsHost(test.host); got != test.want {
			t.Errorf("%q with %q: allowed %v, want %v", test.host, test.hosts, got, test.want)
		}
	}
}

// In HTTP/2 a method may hold whatever its frame does.
func TestAMethodIsAToken(t *testing.T) {
	const tchar = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" // RFC 9110 section 5.6.2
	enters := map[string]bool{"": false, "é": false}
	for c := range 256 {
		enters[string([]byte{byte(c)})] = strings.IndexByte(tchar, byte(c)) >= 0
	}
	g := Guard{}.rules("", false)
	for method, want := range enters {
		r := &http.Request{Method: method, ProtoMajor: 2, RequestURI: "/", URL: &url.URL{Path: "/"}}
		if got := g.refusal(r) == nil; got != want {
			t.Errorf("the method %q enters: %v, want %v", method, got, want)
		}
	}
}

func TestASCIIIsReadInTwoToSixBytes(t *testing.T) {
	const dot, del = '.', 0x7f
	for _, test := range []struct {
		octets string
		ascii  byte
		length int
	}{
		{"\xc0\xae", dot, 2},
		{"\xe0\x80\xae", dot, 3},
		{"\xf0\x80\x80\xae", dot, 4},
		{"\xf8\x80\x80\x80\xae", dot, 5},
		{"\xfc\x80\x80\x80\x80\xae", dot, 6},
		{"\xfe\x80\x80\x80\x80\x80\xae", 0, 0}, // RFC 2279 section 2 knows no more than six
		{"\xc1\xbf", del, 2},
		{"\xc2\x80", 0, 0}, // U+0080, which is no ASCII
		{"\xc0.", 0, 0},
	} {
		octets := []byte(test.octets)
		if ascii, length := overlong(octets); ascii != test.ascii || length != test.length {
			t.Errorf("%q: got %q of %d bytes, want %q of %d", octets, ascii, length, test.ascii, test.length)
		}
		if _, length := overlong(octets[:len(octets)-1]); length != 0 {
			t.Errorf("%q: read beyond its end", octets[:len(octets)-1])
		}
	}
}

func TestPathsAreComparedInWholeSegments(t *testing.T) {
	for _, test := range []struct {
		prefix, path string
		want         bool
	}{
		{"/", "/anything", true},
		{"/orders", "/orders", true},
		{"/orders", "/orders/", true},
		{"/orders/", "/orders", true},
		{"/orders", "/orders/7/lines", true},
		{"/orders", "/ord%65rs/7", true},
		{"/v1/orders", "/v1/orders/7", true},
		{"/größe", "/gr%C3%B6%C3%9Fe/7", true},
		{"/a b", "/a%20b", true},
		{"/orders", "/ordersx", false},
		{"/orders", "/order", false},
		{"/orders", "/", false},
		{"/orders", "/Orders", false},
		{"/orders", "//orders", false},
		{"/orders", "/orders%2F7", false},
		{"/orders", "/orders;v=1/7", false},
		{"/orders", "/orders#x", false},
		{"/v1/orders", "/v1//orders", false},
		{"/v1/orders", "/v1%2Forders", false},
	} {
		if got := within(test.path, test.prefix); got != test.want {
			t.Errorf("%s within %s: %v, want %v", test.path, test.prefix, got, test.want)
		}
	}
}

func TestTheGuardCostsAnOrdinaryRequestNoAllocation(t *testing.T) {
	g := Guard{Hosts: []string{"", "gateway.ns.svc"}, Methods: []string{"GET"}, Paths: []string{"/v1/orders"}}.rules("", false)
	for _, target := range []string{"/v1/orders", "/v1/orders/7%20a?b=c"} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", target, nil)
		r.Host = "gateway.ns.svc:8080"
		r.Header = map[string][]string{"User-Agent": {"old/1"}, "Accept": {"*/*"}}
		if f := g.refusal(r); f != nil {
			t.Fatalf("%s: refused: %s", target, f.reason)
		}
		if got := testing.AllocsPerRun(100, func() { g.refusal(r) }); got > 0 {
			t.Errorf("%s: %v allocations", target, got)
		}
	}
}

func BenchmarkGuard(b *testing.B) {
	g := Guard{Hosts: []string{"127.0.0.1"}}.rules("", false)
	r := httptest.NewRequestWithContext(b.Context(), "GET", "/v1/orders/7?a=b", nil)
	r.Host = "localhost:8080"
	r.Header = map[string][]string{"User-Agent": {"bench"}, "Accept": {"*/*"}, "Accept-Encoding": {"br"}, "Content-Type": {"application/json"}}
	b.ReportAllocs()
	for b.Loop() {
		g.refusal(r)
	}
}
