package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// originHost is what the upstream is called by.
const originHost = "origin.test"

// A trial is the real server, proxy and transport between a client that says
// exactly what it is told to, and an origin that looks at every byte. All of
// it is in memory, one request to the origin by connection.
type trial struct {
	clients  chan net.Conn
	origins  sync.WaitGroup
	mu       sync.Mutex
	arrivals []*arrival
}

// newTrial starts a trial. What upstream and guard of cfg leave open is as it
// is by default.
func newTrial(t testing.TB, cfg proxy.Config) *trial {
	tr := &trial{clients: make(chan net.Conn)}
	transport := proxy.NewTransport(proxy.TransportConfig{})
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		tr.origins.Go(func() { tr.serveOrigin(far) })
		return near, nil
	}
	if cfg.Upstream == nil {
		cfg.Upstream = &url.URL{Scheme: "http", Host: originHost}
	}
	cfg.Tokens, cfg.Transport = &tokens{token: canary}, transport
	server := &http.Server{
		Handler: proxy.New(cfg), MaxHeaderBytes: 64 << 10, DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() { _ = server.Serve(tr) }()
	t.Cleanup(func() { _ = server.Close() })
	return tr
}

// Accept, Close and Addr make a trial the listener of its server.
func (tr *trial) Accept() (net.Conn, error) {
	if conn, ok := <-tr.clients; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (tr *trial) Close() error {
	close(tr.clients)
	return nil
}

func (*trial) Addr() net.Addr { return &net.UnixAddr{Name: "trial", Net: "unix"} }

// send says these bytes and nothing more, and returns what was answered and
// what the origin got.
func (tr *trial) send(t testing.TB, says string) (answer string, arrivals []*arrival) {
	t.Helper()
	client := &scripted{says: strings.NewReader(says), done: make(chan struct{}), over: make(chan struct{}, 1)}
	tr.clients <- client
	select {
	case <-client.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("no end of %q, answered %q", says, client.answer.String())
	}
	tr.origins.Wait()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	arrivals, tr.arrivals = tr.arrivals, nil
	return client.answer.String(), arrivals
}

// scripted is the server's end of a client that says what it has to say, closes
// its side, and stays for the answers.
type scripted struct {
	says   *strings.Reader
	answer buffer
	once   sync.Once
	done   chan struct{} // closed when the server will answer no more
	over   chan struct{} // tells a waiting read to end
}

// Read knows, as one of a real half-closed client would have to, that the
// server waits for a client to leave by a read of one byte.
func (c *scripted) Read(p []byte) (int, error) {
	if len(p) > 1 || c.says.Len() > 0 {
		return c.says.Read(p)
	}
	select {
	case <-c.over:
		return 0, os.ErrDeadlineExceeded
	case <-c.done:
		return 0, io.EOF
	}
}

func (c *scripted) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && time.Until(t) <= 0 {
		select {
		case c.over <- struct{}{}:
		default:
		}
		return nil
	}
	select { // nobody waits any more
	case <-c.over:
	default:
	}
	return nil
}

func (c *scripted) Write(p []byte) (int, error) { return c.answer.Write(p) }

func (c *scripted) CloseWrite() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

func (c *scripted) Close() error                     { return c.CloseWrite() }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
func (*scripted) LocalAddr() net.Addr                { return &net.UnixAddr{} }
func (*scripted) RemoteAddr() net.Addr               { return &net.UnixAddr{} }

// An arrival is a request as the origin got it, byte for byte.
type arrival struct {
	method, target, version string
	fields, trailers        []field
	body                    []byte
	whole                   bool  // it came to its end
	fault                   error // it is no request as RFC 9112 has it
}

type field struct{ name, value string }

func (tr *trial) serveOrigin(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	from := bufio.NewReader(conn)
	if _, err := from.Peek(1); err != nil {
		return // a connection that was not needed
	}
	a := &arrival{}
	a.fault = a.readHead(from)
	if strings.Contains(strings.ToLower(a.value("Expect")), "100-continue") {
		_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	if a.fault == nil {
		a.fault = a.readBody(from)
	}
	if a.whole {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		if rest, _ := io.ReadAll(from); len(rest) > 0 && a.fault == nil {
			a.fault = fmt.Errorf("%q after its end", rest)
		}
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.arrivals = append(tr.arrivals, a)
}

// line reads up to CRLF, and nothing else for the end of a line.
func line(from *bufio.Reader) (string, error) {
	text, err := from.ReadString('\n')
	if err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(text, "\r\n")
	if !ok || strings.ContainsAny(text, "\r\x00") {
		return "", fmt.Errorf("the line %q", text)
	}
	return text, nil
}

func (a *arrival) readHead(from *bufio.Reader) error {
	first, err := line(from)
	if err != nil {
		return err
	}
	parts := strings.Split(first, " ")
	if len(parts) != 3 {
		return fmt.Errorf("the request line %q", first)
	}
	a.method, a.target, a.version = parts[0], parts[1], parts[2]
	a.fields, err = readFields(from)
	return err
}

func readFields(from *bufio.Reader) ([]field, error) {
	var fields []field
	for {
		text, err := line(from)
		if err != nil || text == "" {
			return fields, err
		}
		name, value, ok := strings.Cut(text, ":")
		if !ok {
			return fields, fmt.Errorf("the field line %q", text)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
}

func (a *arrival) readBody(from *bufio.Reader) (err error) {
	defer func() {
		a.whole = err == nil
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil // the client broke off
		}
	}()
	length, chunked := a.value("Content-Length"), a.value("Transfer-Encoding")
	switch {
	case chunked != "" && chunked != "chunked":
		return fmt.Errorf("the transfer coding %q", chunked)
	case chunked != "":
		return a.readChunks(from)
	case length == "":
		return nil
	}
	n, err := strconv.ParseUint(length, 10, 31)
	if err != nil {
		return fmt.Errorf("the length %q", length)
	}
	a.body = make([]byte, min(n, 1<<20))
	n2, err := io.ReadFull(from, a.body)
	a.body = a.body[:n2]
	return err
}

func (a *arrival) readChunks(from *bufio.Reader) error {
	for {
		size, err := line(from)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil {
			return fmt.Errorf("the chunk size %q", size)
		}
		if n == 0 {
			a.trailers, err = readFields(from)
			return err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(from, chunk); err != nil {
			return err
		}
		a.body = append(a.body, chunk...)
		if end, err := line(from); err != nil || end != "" {
			return fmt.Errorf("a chunk that ends in %q: %w", end, err)
		}
	}
}

// values returns all values of a field.
func (a *arrival) values(name string) (values []string) {
	for _, f := range a.fields {
		if strings.EqualFold(f.name, name) {
			values = append(values, f.value)
		}
	}
	return values
}

func (a *arrival) value(name string) string { return strings.Join(a.values(name), ", ") }

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

func shown(arrivals []*arrival) string {
	var all []string
	for _, a := range arrivals {
		all = append(all, fmt.Sprintf("%+v", *a))
	}
	return strings.Join(all, "\n            ")
}
