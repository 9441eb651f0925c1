package proxy_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// frame is a frame of HTTP/2 (RFC 9113 section 4.1).
func frame(kind, flags byte, stream uint32, payload string) string {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	head = binary.BigEndian.AppendUint32(append(head, flags), stream)
	return string(head) + payload
}

// inHTTP2 is all that a client says in order to make a request without a body,
// which may be one that no library would make. fields are names and values.
func inHTTP2(fields ...string) string {
	return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, "") + frame(headers, endStream|endHeaders, 1, block(fields))
}

// Types and flags of frames (RFC 9113 section 6).
const (
	data, headers, rstStream, settings = 0, 1, 3, 4
	endStream, ack, endHeaders         = 1, 1, 4
)

// block is names and values as literals with a new name, not indexed (RFC 7541
// section 6.2.2).
func block(fields []string) string {
	var b strings.Builder
	for i := 0; i < len(fields); i += 2 {
		b.WriteByte(0)
		for _, text := range fields[i : i+2] {
			b.WriteByte(byte(len(text)))
			b.WriteString(text)
		}
	}
	return b.String()
}

// untilFrame reads up to and with the first frame of one of these types.
func untilFrame(from io.Reader, kinds ...byte) {
	var head [9]byte
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, from, int64(binary.BigEndian.Uint32(head[:])>>8))
		if slices.Contains(kinds, head[3]) {
			return
		}
	}
}

// answersInHTTP2 starts a proxy before an upstream that answers the first request
// on a connection by frames that no library would send.
func answersInHTTP2(t *testing.T, frames ...string) *sidecar {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			from := bufio.NewReader(conn)
			_, _ = from.Discard(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
			untilFrame(from, headers)
			_, _ = io.WriteString(conn, frame(settings, 0, 0, "")+frame(settings, ack, 0, "")+strings.Join(frames, ""))
			_, _ = io.Copy(io.Discard, from)
			_ = conn.Close()
		}
	}()
	return start(t, "http://"+listener.Addr().String(), proxy.Config{Transport: proxy.NewTransport(proxy.TransportConfig{PlainHTTP2: true})})
}

// head is a frame with names and values, and body one that ends the answer.
func head(fields ...string) string { return frame(headers, endHeaders, 1, block(fields)) }
func body(text string) string      { return frame(data, endStream, 1, text) }

func TestAnAnswerOfHTTP2CannotMisleadAClientOfHTTP1(t *testing.T) {
	for _, lengths := range [][]string{{"2", "200"}, {"+2"}, {"Bearer " + canary}, {""}} {
		fields := []string{":status", "200"}
		for _, length := range lengths {
			fields = append(fields, "content-length", length)
		}
		s := answersInHTTP2(t, head(fields...), body("hi"))
		resp := s.send(t, "GET", "/", nil)
		if got, want := fmt.Sprint(resp.StatusCode, resp.Header["Content-Length"], resp.TransferEncoding, read(t, resp.Body)), "200 [] [chunked]hi"; got != want {
			t.Errorf("%q: answered %s, want %s", lengths, got, want)
		}
	}
}

func TestAnAnswerWithoutABodyMayTellALength(t *testing.T) {
	for _, status := range []string{"204", "304"} {
		for _, rest := range []string{body(""), body("hi")} { // which it must not have
			s := answersInHTTP2(t, head(":status", status, "content-length", "5", "etag", "x"), rest)
			resp := s.send(t, "GET", "/", nil)
			if got, want := fmt.Sprint(resp.StatusCode, resp.Header["Etag"], read(t, resp.Body)), status+" [x]"; got != want {
				t.Errorf("answered %s, want %s", got, want)
			}
			s.recorder.wants(t, "GET "+status)
		}
	}
}

func TestNoProtocolIsSwitchedByAnInterimAnswer(t *testing.T) {
	s := answersInHTTP2(t, head(":status", "101", "upgrade", "websocket"), head(":status", "200"), body("hi"))
	resp := s.send(t, "GET", "/", nil)
	if got, want := fmt.Sprint(resp.StatusCode, read(t, resp.Body)), "200hi"; got != want {
		t.Errorf("answered %s, want %s", got, want)
	}
}

func TestNoFieldsOfFramingComeBeforeOrBehindAnAnswer(t *testing.T) {
	s := answersInHTTP2(t,
		head(":status", "103", "link", "</a>", "content-length", "5", "trailer", "host"), head(":status", "200"), frame(data, 0, 1, "hi"),
		frame(headers, endHeaders|endStream, 1, block([]string{"x-sum", "1", "content-length", "5", "host", "evil", "cache-control", "a"})))
	_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
	got := read(t, from)
	if want := "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"; !strings.HasPrefix(got, want) {
		t.Errorf("answered %q, want %q first", got, want)
	}
	if want := "hi\r\n0\r\nX-Sum: 1\r\n\r\n"; !strings.HasSuffix(got, want) {
		t.Errorf("answered %q, want %q last", got, want)
	}
}

func TestSoManyInterimAnswersAreHandedOn(t *testing.T) {
	s := answersInHTTP2(t, strings.Repeat(head(":status", "103", "link", "</a>"), 12), head(":status", "200"), body("hi"))
	_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
	if got := read(t, from); strings.Count(got, "HTTP/1.1 103 ") != 10 || !strings.Contains(got, "HTTP/1.1 200 ") {
		t.Errorf("answered %q", got)
	}
}

// The connection to the upstream is the same for all.
func TestWhoTakesNoInterimAnswersHoldsUpNobody(t *testing.T) {
	hint := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	}
	inBubble(t, protocols{client: 1, upstream: 2}, proxy.New, hint, func(t *testing.T, network *granttest.Pipe, r *recorder) {
		slow, err := network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		say(t, slow, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
		synctest.Wait()
		client := &http.Transport{DialContext: network.Dial}
		defer client.CloseIdleConnections()
		begun := time.Now()
		resp, err := (&http.Client{Transport: client}).Get("http://app/")
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusNoContent || time.Since(begun) > 0 {
			t.Errorf("answered %s after %v", resp.Status, time.Since(begun))
		}
	})
}

func TestAStatusThatCannotBeHandedOnIsA502(t *testing.T) {
	for _, status := range []string{"099", "99", "1000", "7"} {
		s := answersInHTTP2(t, head(":status", status), body(""))
		wantsOwn(t, s.send(t, "GET", "/", nil), http.StatusBadGateway, "upstream_unreachable", "http_protocol_error", map[string]any{})
	}
	s := answersInHTTP2(t, head(":status", "999"), body("hi"))
	if got, want := s.send(t, "GET", "/", nil).StatusCode, 999; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
}

// HTTP/2 delimits fields by their length. So they can hold what would end them
// in HTTP/1.1, as which they may go on.
func TestWhatMustNotEnterIsRefusedInHTTP2(t *testing.T) {
	upstream := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s arrived", r.Method, r.RequestURI) })
	for _, test := range []struct{ method, path, authority, name, value, want string }{
		{"GET /b HTTP/1.1", "/", "localhost", "a", "b", "GET /b HTTP/1.1 405"},
		{"TRACE", "/", "localhost", "a", "b", "TRACE 405"},
		{"PRI", "*", "localhost", "a", "b", "PRI 405"},
		{"GET", "/a HTTP/1.1", "localhost", "a", "b", "GET 400"},
		{"GET", "/a?b HTTP/1.1", "localhost", "a", "b", "GET 400"},
		{"GET", "*", "localhost", "a", "b", "GET 400"},
		{"GET", "http://elsewhere/", "localhost", "a", "b", "GET 400"},
		{"GET", "/a/%2e%2e/b", "localhost", "a", "b", "GET 400"},
		{"GET", "/%00", "localhost", "a", "b", "GET 400"},
		{"GET", "/", "attacker.test", "a", "b", "GET 421"},
		{"GET", "/", "attacker.test", "host", "localhost", "GET 421"},
		{"GET", "/", "", "host", "attacker.test", "GET 421"},
		{"GET", "/", "localhost", "x_a", "b", "GET 400"},
	} {
		fields := []string{":method", test.method, ":scheme", "http", ":path", test.path}
		if test.authority != "" {
			fields = append(fields, ":authority", test.authority)
		}
		s := start(t, upstream.URL, proxy.Config{Guard: proxy.Guard{Hosts: []string{"127.0.0.1"}}})
		s.dial(t, inHTTP2(append(fields, test.name, test.value)...))
		s.recorder.wants(t, test.want)
	}
}

func TestWhatHTTP2CannotCarryIsRefusedByTheServer(t *testing.T) {
	upstream := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s arrived", r.Method, r.RequestURI) })
	for _, odd := range [][]string{
		{":path", "/", "a", "b\r\nc: d"},
		{":path", "/\r\n"},
		{":path", "/", "a\r\nb", "c"},
		{":path", "/", "connection", "x-a"},
		{":path", "/", "transfer-encoding", "chunked"},
		{":path", "/", "upgrade", "websocket"},
		{":path", "/", "te", "gzip"},
		{":path", "/", ":protocol", "websocket"},
		{":path", "/", ":path", "/b"},
	} {
		s := start(t, upstream.URL, proxy.Config{})
		_, from := s.dial(t, inHTTP2(append([]string{":method", "GET", ":scheme", "http", ":authority", "app"}, odd...)...))
		untilFrame(from, headers, rstStream)
		if n := s.recorder.startedCount(); n != 0 {
			t.Errorf("%q reached the proxy", odd)
		}
	}
}

func TestFieldsOfHTTP2ArriveInHTTP1AsTheyAre(t *testing.T) {
	addr, heads := headOf(t)
	s := start(t, "http://"+addr, proxy.Config{})
	s.dial(t, inHTTP2(":method", "GET", ":scheme", "http", ":authority", "app", ":path", "/a%2Fb;c//?d|e",
		"te", "trailers", "grpc-timeout", "1S", "content-length", "0", "host", "other", "authorization", "Basic x", "cookie", "a=b", "cookie", "c=d"))
	want := sorted("GET /a%2Fb;c//?d|e HTTP/1.1\r\nHost: " + addr + "\r\nAuthorization: Bearer " + canary +
		"\r\nCookie: a=b; c=d\r\nGrpc-Timeout: 1S\r\nTe: trailers\r\n\r\n")
	if got := <-heads; got != want {
		t.Errorf("the upstream got\n%s, want\n%s", got, want)
	}
	s.recorder.wants(t, "GET 204")
}

func TestARefusalInHTTP2CostsNoOtherRequestItsConnection(t *testing.T) {
	const most = 3
	g := newGate()
	s := startFor(t, 2, serve(t, g.ServeHTTP).URL, proxy.Config{MaxInFlight: most, Guard: proxy.Guard{Methods: []string{"GET", "POST"}}})
	answers := make(chan *http.Response, most)
	for range most {
		go func() { answers <- s.send(t, "GET", "/", nil) }()
		<-g.asked
	}
	refused := func(method string, status int) {
		body, piece := io.Pipe()
		defer piece.Close()
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(c httptrace.GotConnInfo) {
				if !c.Reused {
					t.Errorf("%s %d: another connection was needed", method, status)
				}
			},
		}), method, s.URL, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("status = %d, want %d", resp.StatusCode, status)
		}
		s.recorder.wants(t, fmt.Sprint(method, " ", status))
	}
	for range 3 {
		refused("POST", http.StatusServiceUnavailable)
		refused("PUT", http.StatusMethodNotAllowed)
	}
	close(g.open)
	for range most {
		if got := (<-answers).StatusCode; got != http.StatusOK {
			t.Errorf("status = %d, want 200 for what was in flight", got)
		}
	}
}

func TestAGRPCServersRefusalOfATokenIsMended(t *testing.T) {
	unauthenticated := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if r.Header.Get("Authorization") != "Bearer "+second {
			w.Header().Set("Grpc-Status", "16")
			return
		}
		_, _ = io.Copy(w, r.Body)
		flush(t, w)
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "16") // not on account of the token: it has been working
	}
	eachProtocol(t, unauthenticated, func(t *testing.T, s *sidecar) {
		s.tokens.next = second
		resp := s.send(t, "POST", "/", strings.NewReader("body"), "Content-Type", "application/grpc")
		if got, want := read(t, resp.Body)+fmt.Sprint(resp.Trailer), "bodymap[Grpc-Status:[16]]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		s.recorder.wantsRefusals(t, "replayed")
	})
}

// talk opens a stream and says so much of its body, which does not end.
func talk(t *testing.T, client *http.Client, address, contentType, begun string) *http.Response {
	t.Helper()
	body, piece := io.Pipe()
	t.Cleanup(func() { _ = piece.Close() })
	req, err := http.NewRequestWithContext(t.Context(), "POST", address, io.MultiReader(strings.NewReader(begun), body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestAnAnswerEndsAlthoughTheClientHasNotEnded(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusUnauthorized, http.StatusForbidden} {
		each(t, fromHTTP2, func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				_ = http.NewResponseController(w).EnableFullDuplex()
			}
			expect(t, r.Body, "begun")
			w.Header().Set("Trailer", "Grpc-Status")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "answer")
			flush(t, w)
			w.Header().Set("Grpc-Status", "5")
		}, func(t *testing.T, s *sidecar) {
			resp := talk(t, s.Client(), s.URL, "application/grpc", "begun")
			if got, want := fmt.Sprint(resp.StatusCode, read(t, resp.Body), resp.Trailer), fmt.Sprint(status, "answermap[Grpc-Status:[5]]"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestAStreamThatStallsIsGivenUpAndNoOther(t *testing.T) {
	withStreams(t, drain, func(t *testing.T, client *http.Client) {
		start := time.Now()
		resp := talk(t, client, "http://app/", "text/plain", "begun")
		wantsOwn(t, resp, http.StatusRequestTimeout, "request_stalled", "http_request_error", map[string]any{})
		if took := time.Since(start); took < patience || took > patience*5/4 {
			t.Errorf("after %v", took)
		}
	})
}

func TestWithoutALimitAClientThatPausesLearnsThatTheUpstreamIsGone(t *testing.T) {
	leave := func(_ http.ResponseWriter, r *http.Request) {
		expect(t, r.Body, "begun")
		panic(http.ErrAbortHandler)
	}
	for _, major := range []int{1, 2} {
		inBubble(t, protocols{client: major, upstream: 2}, unlimited, leave, func(t *testing.T, network *granttest.Pipe, _ *recorder) {
			client := &http.Transport{DialContext: network.Dial, Protocols: only(major)}
			defer client.CloseIdleConnections()
			resp := talk(t, &http.Client{Transport: client}, "http://app/", "text/plain", "begun")
			wantsOwn(t, resp, http.StatusBadGateway, "upstream_unreachable", "connection_terminated", map[string]any{})
		})
	}
}

// late is a TokenSource that takes its time to replace a token.
type late struct{ refused atomic.Bool }

func (l *late) AccessToken(context.Context) (string, error) {
	if !l.refused.Load() {
		return canary, nil
	}
	time.Sleep(5 * time.Second)
	return second, nil
}

func (l *late) Invalidate(string) { l.refused.Store(true) }

func TestAClientMayPauseWhileItsTokenIsReplaced(t *testing.T) {
	handler := func(cfg proxy.Config) http.Handler {
		cfg.Tokens = &late{}
		return proxy.New(cfg)
	}
	upstream := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+canary {
			expect(t, r.Body, "begun")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}
	withStreamsOf(t, handler, upstream, func(t *testing.T, client *http.Client) {
		body, piece := io.Pipe()
		go func() {
			say(t, piece, "begun")
			time.Sleep(3 * time.Second)
			say(t, piece, " and ended")
			_ = piece.Close()
		}()
		resp, err := client.Post("http://app/", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, want := fmt.Sprint(resp.StatusCode, read(t, resp.Body)), "200begun and ended"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestAGRPCCallMayPauseBeforeItIsAnswered(t *testing.T) {
	withStreams(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Hour)
		_, _ = io.CopyN(w, r.Body, 5)
	}, func(t *testing.T, client *http.Client) {
		if got := read(t, talk(t, client, "http://app/", "application/grpc+proto", "begun").Body); got != "begun" {
			t.Errorf("got %q", got)
		}
	})
}
