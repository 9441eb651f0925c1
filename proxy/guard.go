package proxy

import (
	"bytes"
	"cmp"
	"fmt"
	"math/bits"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Guard says which requests may enter. Its zero value has the rules that
// nobody needs to break: the target is a path, without dot segments or control
// characters however they are spelt; none of [ForbiddenMethods]; no field name
// with an underscore; nothing that a page of another site makes a browser send.
// What may enter goes on byte for byte, only that no upgrade but to websocket
// is asked for.
type Guard struct {
	// Hosts are the names and addresses that Host may show, with any port,
	// beside localhost and loopback addresses: whoever gets a browser to
	// resolve a name of his own to our address shows that name. An unspecified
	// address among them, or "", stands for all addresses, and "*" for
	// everything; nil: everything.
	Hosts []string
	// Methods are those that may be used; nil: all. Fields that ask a server to
	// take the method for another are refused beside them.
	Methods []string
	// Paths are prefixes of the paths that may be asked for, in whole segments
	// and not escaped; nil: all. Fields that ask a server to take the path for
	// another are refused beside them, or if the upstream has a path.
	Paths []string
	// AllowUnderscores lets X_Name in, which many servers cannot tell from
	// X-Name.
	AllowUnderscores bool
	// AllowCrossSite lets in what a browser sends on behalf of a page of
	// another site, as Sec-Fetch-Site tells.
	AllowCrossSite bool
}

// ForbiddenMethods are never let in, in whatever case: they would let a client
// reach beyond requests. PRI is from the preface of HTTP/2.
var ForbiddenMethods = []string{http.MethodConnect, http.MethodTrace, "TRACK", "PRI"}

// Fields by which some servers, or frameworks, take a request for another.
var (
	methodOverrides = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}
	pathOverrides   = []string{"X-Original-Url", "X-Rewrite-Url"}
)

// rules are a Guard made ready for use.
type rules struct {
	Guard
	allow               string // for the field of that name
	overrides           []string
	anyHost, anyAddress bool
	addresses           []netip.Addr
	base                string // what the upstream puts before all paths
	// wholeURLs says that the path is sent as part of a URL, which cannot hold
	// every path that may be sent otherwise.
	wholeURLs bool
}

// UsualMethods are those that a client is told of while all may be used.
var UsualMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func (g Guard) rules(base string, wholeURLs bool) *rules {
	r := &rules{Guard: g, base: base, wholeURLs: wholeURLs, anyHost: g.Hosts == nil || slices.Contains(g.Hosts, "*")}
	allowed := UsualMethods
	if g.Methods != nil {
		allowed, r.overrides = g.Methods, append(r.overrides, methodOverrides...)
	}
	r.allow = strings.Join(allowed, ", ")
	if g.Paths != nil || base != "" {
		r.overrides = append(r.overrides, pathOverrides...)
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
	if status == http.StatusBadRequest || status == http.StatusRequestHeaderFieldsTooLarge {
		errorType = "http_request_error"
	}
	return &failure{status: status, reason: reason, cause: cause, message: message, proxyStatus: errorType}
}

var (
	forbiddenMethod = denied(http.StatusMethodNotAllowed, "method_refused", "",
		"The method %q is never allowed: it would let the client reach beyond requests.")
	refusedMethod = denied(http.StatusMethodNotAllowed, "method_refused", "",
		"The method %q is not in ALLOWED_METHODS, where upper and lower case differ.")
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
		"The sidecar is not called by the name in Host, %q: add it to ALLOWED_HOSTS if it should be.")
	refusedUnderscore = denied(http.StatusBadRequest, "header_refused", "underscore",
		"The field name %q holds an underscore, which many servers cannot tell from a hyphen: ALLOW_UNDERSCORE_HEADERS=true lets it pass.")
	refusedOverride = denied(http.StatusBadRequest, "header_refused", "override",
		"The field %q has some servers take the request for another, past ALLOWED_METHODS, ALLOWED_PATHS or the path of UPSTREAM_URL.")
	refusedTrailer = denied(http.StatusBadRequest, "header_refused", "trailer",
		"The field %q must not come as a trailer, where some servers would take it for a header.")
	refusedTrailers = denied(http.StatusRequestHeaderFieldsTooLarge, "header_refused", "trailers",
		fmt.Sprintf("The field Trailer announces more than %d fields.", MaxTrailers))
	refusedCrossSite = denied(http.StatusForbidden, "header_refused", "cross_site",
		"A page of another site had a browser send this, as Sec-Fetch-Site tells: ALLOW_CROSS_SITE=true lets it pass.")
)

// maxOffender is how much of what a client sent is shown to it again.
const maxOffender = 100

// naming puts in the message what is refused.
func (f failure) naming(offender string) *failure {
	f.message = fmt.Sprintf(f.message, offender[:min(len(offender), maxOffender)])
	return &f
}

// refusal tells why r may not enter; nil: it may.
func (g *rules) refusal(r *http.Request) *failure {
	path := rawPath(r)
	switch {
	case isForbidden(r.Method), r.ProtoMajor != 1 && !isToken(r.Method):
		return forbiddenMethod.naming(r.Method)
	case g.Methods != nil && !slices.Contains(g.Methods, r.Method):
		return refusedMethod.naming(r.Method)
	case !strings.HasPrefix(path, "/"):
		return refusedForm
	case !g.hostAllowed(r.Host):
		return refusedHost.naming(r.Host)
	case !g.AllowCrossSite && slices.Contains(r.Header["Sec-Fetch-Site"], "cross-site"):
		return refusedCrossSite
	case strings.IndexByte(r.RequestURI, ' ') >= 0, // HTTP/2 can carry it; in HTTP/1.1 it would end the target
		escapedAnew(r.URL) && (g.wholeURLs || isNetworkPath(g.base+path)):
		return refusedOctets
	}
	if f := cmp.Or(g.refusedField(r.Header), g.refusedField(r.Trailer), refusedAsTrailer(r.Trailer), misleading(path)); f != nil {
		return f
	}
	if g.Paths != nil && !slices.ContainsFunc(g.Paths, func(prefix string) bool { return within(path, prefix) }) {
		return refusedPath
	}
	return nil
}

// isForbidden knows that methods are case-sensitive, and that not every server
// does.
func isForbidden(method string) bool {
	return slices.ContainsFunc(ForbiddenMethods, func(never string) bool { return strings.EqualFold(method, never) })
}

// isToken is for what net/http checks in HTTP/1.1 only (RFC 9110 section 9.1).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	})
}

// AllowsHost reports whether a request with this field Host may enter.
func (g Guard) AllowsHost(host string) bool { return g.rules("", false).hostAllowed(host) }

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

// refusedField tells which of these fields is refused, and why.
func (g *rules) refusedField(h http.Header) *failure {
	for name := range h {
		if !g.AllowUnderscores && strings.IndexByte(name, '_') >= 0 {
			return refusedUnderscore.naming(name)
		}
		if len(g.overrides) > 0 && slices.Contains(g.overrides, hyphenated(name)) {
			return refusedOverride.naming(name)
		}
	}
	return nil
}

// noTrailers are fields that RFC 9110 section 6.5.1 bars from trailers: those of
// framing, routing and authentication above all.
var noTrailers = []string{
	"Authorization", "Proxy-Authorization", "Cookie", "Host", "Connection", "Content-Length",
	"Content-Encoding", "Content-Type", "Content-Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Cache-Control", "Expect", "Max-Forwards", "Range", "Pragma",
}

// MaxTrailers is the most that a request may announce, and more than requests
// are known to have. One field announces them all, and costs fifty times its length.
const MaxTrailers = 32

// refusedAsTrailer looks at what is announced; nothing else is sent on.
func refusedAsTrailer(announced http.Header) *failure {
	if len(announced) > MaxTrailers {
		return refusedTrailers
	}
	for name := range announced {
		if slices.Contains(noTrailers, hyphenated(name)) {
			return refusedTrailer.naming(name)
		}
	}
	return nil
}

// hyphenated is what a field is called by servers that cannot tell an
// underscore from a hyphen.
func hyphenated(name string) string {
	return textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
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
		octets = shortest(octets)
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
// what they take for a query or a fragment. Windows has no use for spaces and
// dots after the first space.
func isDotSegment(segment []byte) bool {
	if len(segment) == 0 || segment[0] != '.' { // as mostly
		return false
	}
	if end := bytes.IndexAny(segment, ";?#"); end >= 0 {
		segment = segment[:end]
	}
	dots, rest, _ := bytes.Cut(segment, []byte{' '})
	return (string(dots) == "." || string(dots) == "..") && len(bytes.Trim(rest, " .")) == 0
}

// shortest undoes, in place, forms of ASCII in UTF-8 that are longer than they
// may be (RFC 3629 section 3), which lenient servers accept.
func shortest(path []byte) []byte {
	short := path[:0]
	for i := 0; i < len(path); i++ {
		c := path[i]
		if ascii, length := overlong(path[i:]); length > 0 {
			c = ascii
			i += length - 1
		}
		short = append(short, c)
	}
	return short
}

// overlong reads ASCII in two to six bytes: a first byte that tells how many
// there are, and others of six bits each, of which only the last seven are set.
func overlong(b []byte) (ascii byte, length int) {
	if b[0] < 0xc0 {
		return 0, 0
	}
	length = bits.LeadingZeros8(^b[0])
	if length > 6 || length > len(b) {
		return 0, 0
	}
	code := uint32(b[0]) & (0x7f >> length)
	for _, c := range b[1:length] {
		if c&0xc0 != 0x80 {
			return 0, 0
		}
		code = code<<6 | uint32(c&0x3f)
	}
	if code >= utf8.RuneSelf {
		return 0, 0
	}
	return byte(code), length
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
