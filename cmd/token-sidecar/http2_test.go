package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// speaksHTTP2 is a client that speaks nothing else.
func speaksHTTP2(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Transport {
	only := &http.Protocols{}
	only.SetUnencryptedHTTP2(true)
	return &http.Transport{DialContext: dial, Protocols: only, DisableCompression: true}
}

func (r *running) http2(t *testing.T) *http.Client {
	transport := speaksHTTP2(nil)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestHTTP2IsSpokenWhereItIsAskedFor(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%d %s %s", r.ProtoMajor, r.Header.Get("Te"), body)
	}
	for settings, want := range map[string]string{
		"LISTEN_HTTP2=false UPSTREAM_HTTP2=false": "",
		"LISTEN_HTTP2=true UPSTREAM_HTTP2=false":  "HTTP/2.0 1 trailers body",
		"LISTEN_HTTP2=true UPSTREAM_HTTP2=true":   "HTTP/2.0 2 trailers body",
	} {
		r := runApp(t, echo, strings.Fields(settings)...)
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.address, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Te", "trailers")
		client := r.http2(t)
		resp, err := client.Do(req)
		client.CloseIdleConnections() // or the server would leave it a second to do so
		if got := shown(resp, err); got != want {
			t.Errorf("%s: answered %q, want %q", settings, got, want)
		}
		_, from := r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if resp, err = http.ReadResponse(from, nil); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: HTTP/1.1 is answered %v, %v", settings, resp, err)
		}
		r.ends(t)
	}
}

func shown(resp *http.Response, err error) string {
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.Proto + " " + string(body)
}

func TestUpstreamHTTP2IsForHTTPAndForNoProxy(t *testing.T) {
	environ := map[string]string{"TOKEN_URL": "https://auth.example.com", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none", "UPSTREAM_HTTP2": "true"}
	environ["UPSTREAM_URL"] = "https://api.example.com"
	if _, err := loadConfig(environ); err == nil || !strings.Contains(err.Error(), "UPSTREAM_HTTP2: is for an UPSTREAM_URL that begins with http://") {
		t.Errorf("with https: %v", err)
	}
	environ["UPSTREAM_URL"], environ["UPSTREAM_PROXY_URL"] = "http://localhost", "http://localhost:3128"
	if _, err := loadConfig(environ); err == nil || !strings.Contains(err.Error(), "UPSTREAM_HTTP2: cannot be used through UPSTREAM_PROXY_URL") {
		t.Errorf("through a proxy: %v", err)
	}
}

func TestTheLimitsOfAClientHoldInHTTP2(t *testing.T) {
	drain := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	for setting, test := range map[string]struct {
		body io.Reader
		want int
	}{
		"STALL_TIMEOUT=20ms":  {newSilence(t), http.StatusRequestTimeout},
		"ALLOWED_METHODS=PUT": {nil, http.StatusMethodNotAllowed},
	} {
		t.Run(setting, func(t *testing.T) {
			r := runApp(t, drain, setting, "LISTEN_HTTP2=true")
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.address, test.body)
			if err != nil {
				t.Fatal(err)
			}
			client := r.http2(t)
			resp, err := client.Do(req)
			if err != nil || resp.StatusCode != test.want {
				t.Fatalf("answered %v, %v, want %d", resp, err, test.want)
			}
			_ = resp.Body.Close()
			client.CloseIdleConnections()
			r.ends(t)
		})
	}
}

func TestAHeadOfHTTP2MayBeNoLargerThanOthers(t *testing.T) {
	const size = 1320 // more than is allowed together with the rest of the head, but not alone
	field := "\x00\x01a\x7f\xa9\x09" + strings.Repeat("x", size)
	r := runApp(t, nil, "LISTEN_HTTP2=true", "MAX_HEADER_BYTES=1024")
	conn, from := r.dial(t, preface+"\x00\x05\x3c\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x09localhost"+field)
	for answer := make([]byte, 0, 4<<10); !strings.Contains(string(answer), "431"); {
		n, err := from.Read(answer[len(answer):cap(answer)])
		if answer = answer[:len(answer)+n]; err != nil {
			t.Fatalf("answered %q, %v", answer, err)
		}
	}
	_ = conn.Close()
	r.ends(t)
}

// newSilence is a body that nothing comes of.
func newSilence(t *testing.T) io.Reader {
	body, piece := io.Pipe()
	t.Cleanup(func() { _ = piece.Close() })
	return body
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" // and empty SETTINGS

func TestAConnectionOfHTTP2ThatIsIdleOrInTheMiddleOfAHeadIsClosed(t *testing.T) {
	for name, says := range map[string]string{
		"idle":            preface,
		"amid the head":   preface + "\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82", // HEADERS without END_HEADERS
		"amid a frame":    preface + "\x00\x00\x09\x01",
		"amid no preface": preface[:20],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := runApp(t, nil, "LISTEN_HTTP2=true", "IDLE_TIMEOUT=20ms", "HEADER_TIMEOUT=20ms")
			_, from := r.dial(t, says)
			if _, err := io.Copy(io.Discard, from); err != nil { // to the end that the sidecar makes
				t.Error(err)
			}
			r.ends(t)
		})
	}
}

func TestNoClientOfHTTP2WritesToTheLog(t *testing.T) {
	r := runApp(t, nil, "LISTEN_HTTP2=true")
	var ends []io.Reader
	for _, says := range []string{
		preface + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",      // GOAWAY
		preface + "\x00\x00\x00\x00\x00\x00\x00\x00\x00",                                      // DATA of no stream
		preface[:24] + "\x00\x00\x08\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", // PING before SETTINGS
	} {
		_, from := r.dial(t, says)
		ends = append(ends, from)
	}
	_, _ = io.Copy(io.Discard, io.MultiReader(ends...)) // the sidecar closes them after a second
	r.ends(t)
	if log := r.log.String(); strings.Contains(log, `"warn"`) || strings.Contains(log, "http2") {
		t.Errorf("log: %s", log)
	}
}

func TestAPanicIsLoggedOnceAMinute(t *testing.T) {
	for proto, over := range map[string]func(*granttest.Pipe) *http.Transport{
		"HTTP/1.1": func(p *granttest.Pipe) *http.Transport { return &http.Transport{DialContext: p.Dial} },
		"HTTP/2.0": func(p *granttest.Pipe) *http.Transport { return speaksHTTP2(p.Dial) },
	} {
		synctest.Test(t, func(t *testing.T) {
			log, network := &lockedBuffer{}, granttest.NewPipe()
			s := server(config{}, newLogger(log, zap.ErrorLevel), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { panic("seen in " + r.Proto) }))
			enableHTTP2(s, config{})
			served := make(chan error)
			go func() { served <- s.Serve(network) }()
			transport := over(network)
			for range 2 {
				if got := shown((&http.Client{Transport: transport}).Get("http://localhost")); got != "" {
					t.Errorf("answered %s", got)
				}
			}
			transport.CloseIdleConnections()
			synctest.Wait()
			if got := strings.Count(log.String(), "seen in "+proto); got != 1 {
				t.Errorf("the log tells of %d panics in %s: %s", got, proto, log)
			}
			_ = s.Close()
			<-served
		})
	}
}

// The figures are those of SECURITY.md; what they cost is in capacity.go.
func TestTheLimitsOfHTTP2AreTold(t *testing.T) {
	for settings, streams := range map[string]uint32{"MAX_IN_FLIGHT=": 1000, "MAX_IN_FLIGHT=7": 7} {
		r := runApp(t, nil, "LISTEN_HTTP2=true", settings)
		conn, from := r.dial(t, preface)
		told := settingsOf(t, from)
		want := map[uint16]uint32{3: streams, 4: 32 << 10, 5: 16 << 10} // concurrent streams, room for each, and for a frame (RFC 9113 section 6.5.2)
		for id, limit := range want {
			if told[id] != limit {
				t.Errorf("%s: setting %d is %d, want %d", settings, id, told[id], limit)
			}
		}
		if room := roomOf(t, from); room != streams*32<<10 {
			t.Errorf("%s: there is room for %d bytes of a connection, want %d", settings, room, streams*32<<10)
		}
		_ = conn.Close()
		r.ends(t)
	}
}

// settingsOf reads the SETTINGS that begin what a server says.
func settingsOf(t *testing.T, from io.Reader) map[uint16]uint32 {
	t.Helper()
	kind, payload := frame(t, from)
	if kind != 4 {
		t.Fatalf("the first frame is of type %d", kind)
	}
	all := map[uint16]uint32{}
	for ; len(payload) >= 6; payload = payload[6:] {
		all[binary.BigEndian.Uint16(payload)] = binary.BigEndian.Uint32(payload[2:])
	}
	return all
}

// roomOf reads on to the WINDOW_UPDATE of the connection.
func roomOf(t *testing.T, from io.Reader) uint32 {
	t.Helper()
	for {
		if kind, payload := frame(t, from); kind == 8 {
			return 1<<16 - 1 + binary.BigEndian.Uint32(payload)
		}
	}
}

func frame(t *testing.T, from io.Reader) (kind byte, payload []byte) {
	t.Helper()
	head := make([]byte, 9)
	_, err := io.ReadFull(from, head)
	payload = make([]byte, binary.BigEndian.Uint32(head)>>8)
	if err == nil {
		_, err = io.ReadFull(from, payload)
	}
	if err != nil {
		t.Fatal(err)
	}
	return head[3], payload
}

// Shutdown.

func TestRequestsOfHTTP2EndBeforeTheSidecarDoes(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	r := runApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-proceed
		}
		_, _ = io.WriteString(w, "late but whole")
	}, "LISTEN_HTTP2=true")
	client, answer := r.http2(t), make(chan string)
	go func() { answer <- shown(client.Get("http://" + r.address + "/slow")) }()
	<-arrived
	r.stop()
	for shown(client.Get("http://"+r.address)) != "" {
		// until no connection is taken any more, and no stream on the one there is
	}
	close(proceed)
	if got, want := <-answer, "HTTP/2.0 late but whole"; got != want {
		t.Errorf("answered %q, want %q", got, want)
	}
	if err := <-r.done; err != nil || strings.Contains(r.log.String(), "cut off") {
		t.Errorf("%v\n%s", err, r.log)
	}
}

func TestStreamsOfHTTP2AreCutOffAtTheDeadline(t *testing.T) {
	r := runApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, "LISTEN_HTTP2=true", "DRAIN_TIMEOUT=50ms")
	resp, err := r.http2(t).Get("http://" + r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.ends(t)
	if got, err := io.ReadAll(resp.Body); string(got) != "begun" || err == nil {
		t.Errorf("read %q, %v, want no more than what had begun", got, err)
	}
	if !strings.Contains(r.log.String(), "cut off") {
		t.Errorf("log: %s", r.log)
	}
}

// Connections.

// Stalls.
