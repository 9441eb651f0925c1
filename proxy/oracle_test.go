package proxy_test

import (
	"bufio"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules. They are written down a second time here, in another way than in
// the product.

var (
	token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110 section 5.6.2
	// steps matches a path that leads elsewhere than it seems to.
	steps   = regexp.MustCompile(`(^|[/\\])\.\.?( [ .]*)?([/\\;?#]|$)`)
	control = regexp.MustCompile(`[\x00-\x1f\x7f]`)
	escape  = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	blank   = regexp.MustCompile(`[ \t\r\n]+`)

	// lenient reads UTF-8 as RFC 2279 had it, and does not mind how long a form is.
	lenient = func() *strings.Replacer {
		var forms []string
		for c := range 128 {
			last, last6 := string([]byte{0x80 | byte(c&0x3f)}), byte(c>>6)
			forms = append(forms, string([]byte{0xc0 | last6})+last, string(rune(c)))
			for _, first := range []string{"\xe0", "\xf0\x80", "\xf8\x80\x80", "\xfc\x80\x80\x80"} {
				forms = append(forms, first+string([]byte{0x80 | last6})+last, string(rune(c)))
			}
		}
		return strings.NewReplacer(forms...)
	}()

	neverMethods  = []string{"TRACE", "TRACK", "CONNECT", "PRI"}
	neverFields   = []string{"Proxy-Authorization", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate"}
	neverTrailers = []string{
		"Authorization", "Proxy-Authorization", "Host", "Content-Length", "Transfer-Encoding", "Connection", "Cookie", "Trailer", "TE", "Upgrade", "Expect",
		"Content-Encoding", "Content-Type", "Content-Range", "Range", "Cache-Control", "Pragma", "Max-Forwards",
	}
	// ourFields are made anew, by rules of their own.
	ourFields = []string{"Authorization", "Host", "Content-Length", "Transfer-Encoding", "Connection", "Trailer", "TE"}
)

// violations judges what the origin got when a client said this.
func (a *arrival) violations(says string) (found []string) {
	breach := func(broken bool, format string, args ...any) {
		if broken {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	breach(a.fault != nil, "malformed: %v", a.fault)
	breach(a.version != "HTTP/1.1" || !token.MatchString(a.method), "request line %q %q", a.method, a.version)
	breach(containsFold(neverMethods, a.method), "method %q", a.method)
	breach(!strings.Contains(says, a.method+" "+a.target+" HTTP/1."), "target %q was not asked for", a.target)
	breach(!strings.HasPrefix(a.target, "/"), "target %q", a.target)
	path, _, _ := strings.Cut(a.target, "?")
	for range 4 {
		path = lenient.Replace(path)
		breach(steps.MatchString(path), "dot segment in %q, which is %q", a.target, path)
		breach(control.MatchString(path), "control character in %q, which is %q", a.target, path)
		path = escape.ReplaceAllStringFunc(path, func(e string) string {
			octet, _ := strconv.ParseUint(e[1:], 16, 8)
			return string([]byte{byte(octet)})
		})
	}
	a.judgeFields(breach)
	a.judgeOrigin(says, breach)
	return found
}

func containsFold(all []string, s string) bool {
	return slices.ContainsFunc(all, func(one string) bool { return strings.EqualFold(one, s) })
}

func (a *arrival) judgeFields(breach func(bool, string, ...any)) {
	breach(!slices.Equal(a.values("Authorization"), []string{"Bearer " + canary}), "Authorization %q", a.values("Authorization"))
	breach(!slices.Equal(a.values("Host"), []string{originHost}), "Host %q", a.values("Host"))
	framings := len(a.values("Content-Length")) + len(a.values("Transfer-Encoding"))
	breach(slices.Contains(a.values("Sec-Fetch-Site"), "cross-site"), "from another site")
	breach(framings > 1, "%d framings", framings)
	upgrade := a.value("Upgrade")
	breach(upgrade != "" && !strings.EqualFold(upgrade, "websocket"), "Upgrade %q", upgrade)
	breach((a.value("Connection") == "Upgrade") != (upgrade != ""), "Connection %q, Upgrade %q", a.value("Connection"), upgrade)
	breach(a.value("TE") != "" && a.value("TE") != "trailers", "TE %q", a.value("TE"))
	for _, f := range slices.Concat(a.fields, a.trailers) {
		breach(!token.MatchString(f.name) || strings.Contains(f.name, "_"), "field name %q", f.name)
		breach(control.MatchString(strings.ReplaceAll(f.value, "\t", " ")), "field value %q", f.value)
		breach(containsFold(neverFields, f.name), "field %q", f.name)
	}
	for _, f := range a.trailers {
		breach(containsFold(neverTrailers, f.name), "trailer %q", f.name)
	}
}

// judgeOrigin wants everything to come from the client.
func (a *arrival) judgeOrigin(says string, breach func(bool, string, ...any)) {
	squeezed := blank.ReplaceAllString(strings.ToLower(says), "")
	for _, f := range slices.Concat(a.fields, a.trailers) {
		text := blank.ReplaceAllString(strings.ToLower(f.name+":"+f.value), "")
		// Go's server takes Pragma: no-cache for Cache-Control as well (RFC 7234 section 5.4).
		added := text == "cache-control:no-cache" && strings.Contains(squeezed, "pragma:no-cache")
		breach(!added && !containsFold(ourFields, f.name) && !strings.Contains(squeezed, text), "field %q was not sent", f)
	}
	rest := says
	for _, octet := range a.body {
		i := strings.IndexByte(rest, octet)
		if i < 0 {
			breach(true, "body %q was not sent", a.body)
			return
		}
		rest = rest[i+1:]
	}
}

// asSent reads what a client says, if that is one request about which nobody
// can be of two minds.
func asSent(says string) (sent *arrival, ok bool) {
	sent = &arrival{}
	from := bufio.NewReader(strings.NewReader(says))
	if err := sent.readHead(from); err != nil {
		return nil, false
	}
	if err := sent.readBody(from); err != nil || !sent.whole {
		return nil, false
	}
	if _, err := from.Peek(1); err == nil {
		return nil, false // there is more
	}
	for _, f := range slices.Concat(sent.fields, sent.trailers) {
		if !token.MatchString(f.name) || control.MatchString(strings.ReplaceAll(f.value, "\t", " ")) {
			return nil, false
		}
	}
	framings := len(sent.values("Content-Length")) + len(sent.values("Transfer-Encoding"))
	return sent, framings <= 1 && (sent.version == "HTTP/1.1" || sent.version == "HTTP/1.0" && sent.value("Transfer-Encoding") == "")
}

// lists reports whether a field is a list that has this member.
func (a *arrival) lists(name, member string) bool {
	return slices.ContainsFunc(strings.Split(a.value(name), ","), func(m string) bool { return strings.EqualFold(strings.Trim(m, " \t"), member) })
}

// due is what has to arrive of the fields and trailers that were sent, by
// names in lower case, the values of each in order.
func (a *arrival) due() (fields, trailers map[string][]string) {
	fields, trailers = map[string][]string{}, map[string][]string{}
	// Who speaks for whom cannot be unsaid by way of Connection.
	forwarding := []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}
	for _, f := range a.fields {
		ours := containsFold(ourFields, f.name) || containsFold(neverFields, f.name) || strings.EqualFold(f.name, "Upgrade")
		if !ours && (!a.lists("Connection", f.name) || containsFold(forwarding, f.name)) {
			name := strings.ToLower(f.name)
			fields[name] = append(fields[name], f.value)
		}
	}
	if offers := a.values("Upgrade"); len(offers) == 1 && strings.EqualFold(offers[0], "websocket") && a.version == "HTTP/1.1" && a.lists("Connection", "Upgrade") {
		fields["upgrade"] = offers
	}
	if a.lists("TE", "trailers") {
		fields["te"] = []string{"trailers"}
	}
	// Two things that net/http does: RFC 7234 section 5.4 is its reason for one,
	// and of several User-Agents it sends the first.
	if pragma := a.values("Pragma"); len(pragma) > 0 && pragma[0] == "no-cache" && len(a.values("Cache-Control")) == 0 && !a.lists("Connection", "Cache-Control") {
		fields["cache-control"] = []string{"no-cache"}
	}
	if agents := fields["user-agent"]; len(agents) > 0 {
		if fields["user-agent"] = agents[:1]; agents[0] == "" {
			delete(fields, "user-agent")
		}
	}
	for _, f := range a.trailers {
		if a.lists("Trailer", f.name) && !containsFold(neverTrailers, f.name) {
			name := strings.ToLower(f.name)
			trailers[name] = append(trailers[name], f.value)
		}
	}
	return fields, trailers
}

// byName are fields by their names in lower case, but for those that the
// proxy and its transport make.
func byName(fields []field) map[string][]string {
	values := map[string][]string{}
	for _, f := range fields {
		if !containsFold(ourFields, f.name) || strings.EqualFold(f.name, "TE") {
			name := strings.ToLower(f.name)
			values[name] = append(values[name], f.value)
		}
	}
	return values
}

// losses tells in what an arrival differs from what was sent.
func (a *arrival) losses(sent *arrival) (found []string) {
	differ := func(what string, got, want any) {
		if g, w := fmt.Sprintf("%q", got), fmt.Sprintf("%q", want); g != w {
			found = append(found, fmt.Sprintf("%s %s, want %s", what, g, w))
		}
	}
	fields, trailers := sent.due()
	differ("request line", a.method+" "+a.target, sent.method+" "+sent.target)
	differ("fields", byName(a.fields), fields)
	differ("trailers", byName(a.trailers), trailers)
	differ("body", a.body, sent.body)
	return found
}

// judge sends, and reports every rule that is broken. Where it is beyond doubt
// what was sent, exactly that has to arrive.
func (tr *trial) judge(t testing.TB, says string) (reached, compared int) {
	t.Helper()
	answer, arrivals := tr.send(t, says)
	var breaches []string
	for _, a := range arrivals {
		breaches = append(breaches, a.violations(says)...)
	}
	if sent, ok := asSent(says); ok && len(arrivals) > 0 {
		compared = 1
		breaches = append(breaches, arrivals[0].losses(sent)...)
		if len(arrivals) > 1 {
			breaches = append(breaches, fmt.Sprintf("%d requests of one", len(arrivals)))
		}
	}
	if strings.Contains(answer, canary) {
		breaches = append(breaches, "the token is in the answer")
	}
	for _, breach := range breaches {
		t.Errorf("%s\n  sent      %q\n  arrived   %s\n  answered  %q", breach, says, shown(arrivals), answer)
	}
	return len(arrivals), compared
}
