package proxy_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// protocols are those of a client and of an upstream, which has TLS or not.
type protocols struct {
	client, upstream int
	tls              bool
}

var (
	fromHTTP1 = []protocols{{1, 1, false}, {1, 2, true}}
	fromHTTP2 = []protocols{{2, 1, false}, {2, 2, false}}
)

// eachProtocol runs a test for all of them.
func eachProtocol(t *testing.T, h http.HandlerFunc, test func(t *testing.T, s *sidecar)) {
	each(t, fromHTTP1, h, test)
	each(t, fromHTTP2, h, test)
}

func each(t *testing.T, all []protocols, h http.HandlerFunc, test func(t *testing.T, s *sidecar)) {
	for _, protocol := range all {
		t.Run(fmt.Sprintf("%+v", protocol), func(t *testing.T) {
			upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got, want := r.ProtoMajor, protocol.upstream; got != want {
					t.Errorf("the upstream is spoken to in HTTP/%d, want %d", got, want)
				}
				h(w, r)
			}))
			transport := proxy.NewTransport(proxy.TransportConfig{
				PlainHTTP2: protocol.upstream == 2 && !protocol.tls, ConnectTimeout: time.Minute, // for 500 handshakes at once, however slow the machine
			})
			if upstream.EnableHTTP2 = protocol.upstream == 2; protocol.tls {
				upstream.StartTLS()
				transport.TLSClientConfig.RootCAs = x509.NewCertPool()
				transport.TLSClientConfig.RootCAs.AddCert(upstream.Certificate())
			} else {
				upstream.Config.Protocols = &http.Protocols{}
				upstream.Config.Protocols.SetHTTP1(true)
				upstream.Config.Protocols.SetUnencryptedHTTP2(true)
				upstream.Start()
			}
			t.Cleanup(upstream.Close)
			test(t, startFor(t, protocol.client, upstream.URL, proxy.Config{Transport: transport}))
		})
	}
}

// flush sends what is written so far.
func flush(t testing.TB, w http.ResponseWriter) {
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Error(err)
	}
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func decode(t testing.TB, resp *http.Response, v any) {
	t.Helper()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}

// accessToken gets a new token from a granttest.Server.
func accessToken(t testing.TB, server string) string {
	t.Helper()
	resp, err := http.PostForm(server+"/oauth/token", url.Values{"grant_type": {"client_credentials"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var grant struct {
		AccessToken string `json:"access_token"`
	}
	decode(t, resp, &grant)
	return grant.AccessToken
}

func TestBodiesStreamBothWaysAtOnce(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
		}
		flush(t, w) // the answer begins before the body does
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, line)
			flush(t, w)
		}
	}
	eachProtocol(t, echo, func(t *testing.T, s *sidecar) {
		body, client := io.Pipe()
		resp := s.send(t, "POST", "/", body)
		for i := range 10 {
			line := fmt.Sprintln("line", i)
			say(t, client, line)
			expect(t, resp.Body, line)
		}
		_ = client.Close()
		expect(t, resp.Body, "")
		s.recorder.wants(t, "POST 200")
	})
}

func TestALargeBodyArrivesWholeAlthoughTheAnswerBeginsEarly(t *testing.T) {
	sum := func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
		}
		_, _ = io.WriteString(w, "early ")
		flush(t, w)
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, hex.EncodeToString(h.Sum(nil)))
	}
	eachProtocol(t, sum, func(t *testing.T, s *sidecar) {
		body, client := io.Pipe()
		resp := s.send(t, "PUT", "/", body)
		expect(t, resp.Body, "early ")
		large := strings.Repeat("0123456789abcdef", 10<<20/16)
		say(t, client, large)
		_ = client.Close()
		if got, want := read(t, resp.Body), digest(large); got != want {
			t.Errorf("SHA-256 = %s, want %s", got, want)
		}
	})
}

func TestALargeDownloadArrivesWhole(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 32<<20/16)
	give := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", strconv.Itoa(len(large)))
		}
		_, _ = io.WriteString(w, large)
	}
	eachProtocol(t, give, func(t *testing.T, s *sidecar) {
		for path, length := range map[string]int64{"/sized": int64(len(large)), "/chunked": -1} {
			resp := s.send(t, "GET", path, nil)
			if got, want := resp.ContentLength, length; got != want {
				t.Errorf("%s: Content-Length = %d, want %d", path, got, want)
			}
			if read(t, resp.Body) != large {
				t.Errorf("%s: it is not what was sent", path)
			}
		}
	})
}

func TestEventsArriveOneByOne(t *testing.T) {
	for _, contentType := range []string{"text/event-stream", "text/event-stream; charset=utf-8", "application/x-ndjson"} {
		seen := make(chan struct{})
		tell := func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			flush(t, w)
			for i := range 5 {
				<-seen // the one before, or the head
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				flush(t, w)
			}
		}
		eachProtocol(t, tell, func(t *testing.T, s *sidecar) {
			resp := s.send(t, "GET", "/", nil)
			for i := range 5 {
				seen <- struct{}{}
				expect(t, resp.Body, fmt.Sprintf("data: %d\n\n", i))
			}
			expect(t, resp.Body, "")
		})
	}
}

func TestARefusalInTheMiddleOfAnUploadArrives(t *testing.T) {
	refuse := func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		expect(t, r.Body, "begin")
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}
	s := start(t, serve(t, refuse).URL, proxy.Config{})
	for _, framing := range []string{"Content-Length: 10485760\r\n\r\nbegin", "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n"} {
		_, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\n"+framing)
		resp := answer(t, from, "POST")
		if got, want := fmt.Sprint(resp.StatusCode, " ", read(t, resp.Body), resp.Close), "413 too large\ntrue"; got != want {
			t.Errorf("answered %q, want %q", got, want)
		}
		s.recorder.wants(t, "POST 413")
	}
}

// A connection whose body is not read to the end must not be used again: the
// next request on it would meet a panic of net/http, or a cancelled context.
func TestAnEarlyAnswerSpoilsNoLaterRequest(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() { // answers a head, then reads the body
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				from := bufio.NewReader(conn)
				for readHead(from) != "" {
					_, _ = io.WriteString(conn, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
					if _, err := from.Discard(10); err != nil {
						return
					}
				}
			}()
		}
	}()
	s := start(t, "http://"+listener.Addr().String(), proxy.Config{})
	for range 10 {
		conn, from := s.dial(t, "")
		for range 3 {
			say(t, conn, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n01234")
			resp := answer(t, from, "POST")
			if got, want := resp.StatusCode, http.StatusNotFound; got != want {
				t.Fatalf("status = %d, want %d", got, want)
			}
			say(t, conn, "56789")
			if resp.Close {
				expect(t, from, "")
				break
			}
		}
	}
}

func TestTheConnectionIsUsedAgainAfterAWholeBody(t *testing.T) {
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	s := start(t, upstream.URL, proxy.Config{})
	conn, from := s.dial(t, "")
	for _, framed := range []string{"Content-Length: 4\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"} {
		for range 3 {
			say(t, conn, "POST / HTTP/1.1\r\nHost: app\r\n"+framed)
			resp := answer(t, from, "POST")
			if got, want := fmt.Sprint(resp.StatusCode, read(t, resp.Body), resp.Close), "200bodyfalse"; got != want {
				t.Fatalf("answered %s, want %s", got, want)
			}
		}
	}
}

func TestAnUpgradeIsATunnel(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		if got, want := fmt.Sprint(r.Header["Authorization"], r.Header["Upgrade"], r.Header["Connection"]), "[Bearer "+canary+"] [websocket] [Upgrade]"; got != want {
			t.Errorf("asked with %s, want %s", got, want)
		}
		conn, from, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-A: 1\r\n\r\nhello ")
		_, _ = io.Copy(conn, from)
	}
	s := start(t, serve(t, echo).URL, proxy.Config{})
	conn, from := s.dial(t, "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Basic x\r\n\r\nearly ")
	resp := answer(t, from, "GET")
	if got, want := fmt.Sprint(resp.StatusCode, resp.Header), "101 map[Connection:[Upgrade] Upgrade:[websocket] X-A:[1]]"; got != want {
		t.Errorf("answered %s, want %s", got, want)
	}
	expect(t, from, "hello early ")
	for i := range 5 {
		frame := strings.Repeat(strconv.Itoa(i), 1<<i)
		say(t, conn, frame)
		expect(t, from, frame)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expect(t, from, "")
	s.recorder.wants(t, "GET 101")
}

func TestAnUpgradeMayBeRefused(t *testing.T) {
	const head, switched = " / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
	for _, test := range []struct {
		name, request, answer string
		want                  int
	}{
		{"by the upstream", "GET" + head + "\r\n", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", http.StatusForbidden},
		{"since it switches to another protocol", "GET" + head + "\r\n", switched + "Upgrade: other\r\n\r\n", http.StatusBadGateway},
		{"since the body is not at its end", "POST" + head + "Content-Length: 9\r\n\r\nbegun", switched + "Upgrade: websocket\r\n\r\n", http.StatusBadGateway},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, serve(t, hijack(t, test.answer)).URL, proxy.Config{})
			_, from := s.dial(t, test.request)
			if got := answer(t, from, "GET").StatusCode; got != test.want {
				t.Errorf("status = %d, want %d", got, test.want)
			}
			s.recorder.wants(t, strings.Fields(test.request)[0]+fmt.Sprint(" ", test.want))
		})
	}
}

// hijack answers with these bytes, and closes the connection.
func hijack(t testing.TB, answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, answer)
		_ = conn.Close()
	}
}

func TestAnnouncedTrailersOfARequestArrive(t *testing.T) {
	const announced = "X-Sum, X-Absent"
	tell := func(w http.ResponseWriter, r *http.Request) {
		before := fmt.Sprint(r.Trailer)
		body, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprint(w, before, string(body), err, r.Trailer, r.Header["Authorization"])
	}
	eachProtocol(t, tell, func(t *testing.T, s *sidecar) {
		_, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nTrailer: "+announced+"\r\nTransfer-Encoding: chunked\r\n\r\n"+
			"4\r\nbody\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\nAuthorization: Bearer evil\r\nProxy-Authorization: a\r\nCookie: a\r\nX-Unannounced: 3\r\n\r\n")
		resp := answer(t, from, "POST")
		want := "map[X-Absent:[] X-Sum:[]]body<nil> map[X-Absent:[] X-Sum:[1 2]] [Bearer " + canary + "]"
		if got := read(t, resp.Body); got != want {
			t.Errorf("the upstream got %s, want %s", got, want)
		}
	})
}

func TestUnannouncedTrailersOfARequestAreDropped(t *testing.T) {
	tell := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprint(w, string(body), err, len(r.Trailer))
	}
	eachProtocol(t, tell, func(t *testing.T, s *sidecar) {
		_, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nAuthorization: Bearer evil\r\nX-A: 3\r\n\r\n")
		if got, want := read(t, answer(t, from, "POST").Body), "body<nil> 0"; got != want {
			t.Errorf("the upstream got %s, want %s", got, want)
		}
	})
}

func TestTrailersOfAnAnswerArrive(t *testing.T) {
	give := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body")
		flush(t, w) // or there would be a Content-Length, and no room for trailers in HTTP/1.1
		w.Header().Set("X-Sum", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	}
	eachProtocol(t, give, func(t *testing.T, s *sidecar) {
		resp := s.send(t, "GET", "/", nil)
		if got, want := fmt.Sprint(resp.Trailer), "map[X-Sum:[]]"; got != want {
			t.Errorf("announced %s, want %s", got, want)
		}
		if got, want := read(t, resp.Body)+fmt.Sprint(resp.Trailer), "bodymap[X-Late:[2] X-Sum:[1]]"; got != want {
			t.Errorf("answered %s, want %s", got, want)
		}
	})
}

func TestInterimAnswersArriveInOrder(t *testing.T) {
	hint := func(w http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			w.Header().Set("Link", fmt.Sprintf("</%d.css>; rel=preload", i))
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "body")
	}
	eachProtocol(t, hint, func(t *testing.T, s *sidecar) {
		var hints []string
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, header))
				return nil
			},
		}), "GET", s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		want := "[103 map[Link:[</0.css>; rel=preload]] 103 map[Link:[</1.css>; rel=preload]] 103 map[Link:[</2.css>; rel=preload]]]"
		if got := fmt.Sprint(hints); got != want {
			t.Errorf("hints %s, want %s", got, want)
		}
		if got, want := fmt.Sprint(resp.StatusCode, resp.Header["Link"], read(t, resp.Body)), "200 []body"; got != want {
			t.Errorf("answered %s, want %s", got, want)
		}
		s.recorder.wants(t, "GET 200")
	})
}

func TestABodyIsSentWhenTheUpstreamSaysContinue(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	t.Run("it does", func(t *testing.T) {
		eachProtocol(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, func(t *testing.T, s *sidecar) {
			conn, from := s.dial(t, head)
			expect(t, from, "HTTP/1.1 100 Continue\r\n\r\n")
			say(t, conn, "body")
			resp := answer(t, from, "POST")
			if got, want := fmt.Sprint(resp.StatusCode, read(t, resp.Body)), "200body"; got != want {
				t.Errorf("answered %s, want %s", got, want)
			}
		})
	})
	t.Run("it does not", func(t *testing.T) {
		eachProtocol(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, func(t *testing.T, s *sidecar) {
			_, from := s.dial(t, head)
			if got, want := answer(t, from, "POST").StatusCode, http.StatusForbidden; got != want {
				t.Errorf("status = %d, want %d", got, want)
			}
		})
	})
}
