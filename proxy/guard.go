package proxy

import (
	"bytes"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// A Guard says which requests may enter. Its zero value has the rules that
// nobody needs to break: the target is a path, without dot segments or control
// characters however they are spelt; no CONNECT, TRACE or TRACK, and no HTTP/2
// preface; no field name with an underscore. What may enter goes on byte for
// byte, only that no upgrade but to websocket is asked for.
type Guard struct {
	// Hosts are the names and addresses that Host may show, with any port,
	// beside localhost and loopback addresses: whoever gets a browser to
	// resolve a name of his own to our address shows that name. An unspecified
	// address among them, or "", stands for all addresses, and "*" for
	// everything; nil: everything.
	Hosts   []string
	Methods []string // nil: all
	// Paths are prefixes of the paths that may be asked for, in whole segments
	// and not escaped; nil: all.
	Paths []string
	// AllowUnderscores lets X_Name in, which many servers cannot tell from
	// X-Name.
	AllowUnderscores bool
}

// rules are a Guard made ready for use.
type rules struct {
	Guard
	allow               string // for the field of that name
	anyHost, anyAddress bool
	addresses           []netip.Addr
	// verbatim tells whether a path can be sent on although net/url would
	// escape it anew.
	verbatim func(path string) bool
}

const usualMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

func (g Guard) rules() *rules {
	r := &rules{Guard: g, allow: usualMethods, anyHost: g.Hosts == nil || slices.Contains(g.Hosts, "*")}
	if g.Methods != nil {
		r.allow = strings.Join(g.Methods, ", ")
	}
	for _, host := range g.Hosts {
		addr, err := netip.ParseAddr(host)
		r.anyAddress = r.anyAddress || host == "" || addr.IsUnspecified()
		if err == nil {
			r.addresses = append(r.addresses, addr.Unmap())
		}
	}
	return r
}

func denied(status int, reason, cause, message string) *failure {
	errorType := "http_request_denied"
	if status == http.StatusBadRequest {
		errorType = "http_request_error"
	}
	return &failure{status: status, reason: reason, cause: cause, message: message, proxyStatus: errorType}
}

var (
	refusedMethod = denied(http.StatusMethodNotAllowed, "method_refused", "",
		"The method is not allowed: it would let the client reach beyond requests, or is not in ALLOWED_METHODS.")
	refusedForm = denied(http.StatusBadRequest, "target_refused", "no_path",
		"The request target must be a path: the sidecar serves one upstream and is no forward proxy.")
	refusedDots = denied(http.StatusBadRequest, "target_refused", "dot_segment",
		"The path must not hold dot segments, plain or escaped.")
	refusedControl = denied(http.StatusBadRequest, "target_refused", "control_character",
		"The path must not hold control characters, plain or escaped.")
	refusedOctets = denied(http.StatusBadRequest, "target_refused", "unescaped",
		"The request target holds characters that have to be percent-encoded.")
	refusedPath = denied(http.StatusForbidden, "path_refused", "",
		"The path is not below one of ALLOWED_PATHS.")
	refusedHost = denied(http.StatusMisdirectedRequest, "host_refused", "",
		"The sidecar is not called by the name in Host: add it to ALLOWED_HOSTS if it should be.")
	refusedField = denied(http.StatusBadRequest, "header_refused", "underscore",
		"A field name holds an underscore, which many servers cannot tell from a hyphen: ALLOW_UNDERSCORE_HEADERS=true lets it pass.")
)

// refusal tells why r may not enter; nil: it may.
func (g *rules) refusal(r *http.Request) *failure {
	path := rawPath(r)
	switch {
	case r.ProtoMajor != 1 && !isToken(r.Method), !g.methodAllowed(r.Method):
		return refusedMethod
	case !strings.HasPrefix(path, "/"):
		return refusedForm
	case !g.hostAllowed(r.Host):
		return refusedHost
	case !g.AllowUnderscores && (hasUnderscore(r.Header) || hasUnderscore(r.Trailer)):
		return refusedField
	case strings.IndexByte(r.RequestURI, ' ') >= 0, // HTTP/2 can carry it; in HTTP/1.1 it would end the target
		escapedAnew(r.URL) && !g.verbatim(path):
		return refusedOctets
	}
	if f := misleading(path); f != nil {
		return f
	}
	if g.Paths != nil && !slices.ContainsFunc(g.Paths, func(prefix string) bool { return within(path, prefix) }) {
		return refusedPath
	}
	return nil
}

// methodAllowed knows that methods are case-sensitive, and that not every
// server does.
func (g *rules) methodAllowed(method string) bool {
	for _, never := range [...]string{http.MethodConnect, http.MethodTrace, "TRACK", "PRI"} {
		if strings.EqualFold(method, never) {
			return false
		}
	}
	return g.Methods == nil || slices.Contains(g.Methods, method)
}

// isToken is for what net/http checks in HTTP/1.1 only (RFC 9110 section 9.1).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	})
}

// hostAllowed takes no Host at all, as in HTTP/1.0, for harmless: a browser
// always sends one.
func (g *rules) hostAllowed(host string) bool {
	if g.anyHost || host == "" {
		return true
	}
	name, ok := withoutPort(host)
	if !ok {
		return false
	}
	isName := func(own string) bool { return strings.EqualFold(own, name) }
	if isName("localhost") || slices.ContainsFunc(g.Hosts, isName) {
		return true
	}
	addr, err := netip.ParseAddr(name)
	addr = addr.Unmap()
	return err == nil && (addr.IsLoopback() || g.anyAddress || slices.Contains(g.addresses, addr))
}

// withoutPort is for host and host:port, unlike [net.SplitHostPort], and knows
// that host.example. is host.example.
func withoutPort(host string) (name string, ok bool) {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i+1:]
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		name, ok = strings.CutSuffix(inner, "]")
		return name, ok && isDigits(port)
	}
	return strings.TrimSuffix(name, "."), isDigits(port) && !strings.Contains(name, ":")
}

func isDigits(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < '0' || c > '9' })
}

func hasUnderscore(h http.Header) bool {
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 {
			return true
		}
	}
	return false
}

// rawPath is the path as it was sent; the server has checked its escapes.
func rawPath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

// escapedAnew reports whether net/url writes the path of u in another way than
// it came.
func escapedAnew(u *url.URL) bool { return u.RawPath != "" && u.RawPath != u.EscapedPath() }

// maxDecodings is how often a path may be decoded on its way: by a gateway, a
// server and a framework.
const maxDecodings = 3

// misleading refuses paths that some server might take for another path.
func misleading(path string) *failure {
	var room [256]byte // so that mostly nothing is allocated
	octets := append(room[:0], path...)
	for times := 0; ; times++ {
		f := misleadingAsIs(octets)
		if f != nil || times == maxDecodings || bytes.IndexByte(octets, '%') < 0 {
			return f
		}
		octets = decode(octets)
	}
}

func misleadingAsIs(path []byte) *failure {
	begin := 0 // of the segment
	for i, c := range path {
		switch {
		case c < ' ' || c == 0x7f:
			return refusedControl
		case c == '/' || c == '\\':
			if isDotSegment(path[begin:i]) {
				return refusedDots
			}
			begin = i + 1
		}
	}
	if isDotSegment(path[begin:]) {
		return refusedDots
	}
	return nil
}

// isDotSegment looks no further than to where servers cut off parameters, or
// what they take for a query or a fragment.
func isDotSegment(segment []byte) bool {
	dots := 0
	for dots < len(segment) && segment[dots] == '.' {
		dots++
	}
	return (dots == 1 || dots == 2) && (dots == len(segment) || strings.IndexByte(";?#", segment[dots]) >= 0)
}

// decode undoes one percent-encoding, in place. What is none, as there may be
// after the first time, stays.
func decode(path []byte) []byte {
	decoded := path[:0]
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) {
			if octet, err := strconv.ParseUint(string(path[i+1:i+3]), 16, 8); err == nil {
				c = byte(octet)
				i += 2
			}
		}
		decoded = append(decoded, c)
	}
	return decoded
}

// within reports whether path is prefix or below it. An escaped slash is part
// of a segment (RFC 3986 section 2.2), and so never ends one of prefix.
func within(path, prefix string) bool {
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return true
	}
	path = path[1:]
	for want := range strings.SplitSeq(prefix, "/") {
		var segment string
		segment, path, _ = strings.Cut(path, "/")
		if decoded, err := url.PathUnescape(segment); err != nil || decoded != want {
			return false
		}
	}
	return true
}
