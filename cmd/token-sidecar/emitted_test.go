package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// The canaries stand for what must not be told. They have all the characters
// that some encoding changes, and that their place allows.
const (
	accessCanary  = "acc/ess+canary=&%:"
	refreshCanary = `ref/resh+canary=&% "\<é`
	paramCanary   = "par/am+canary=&% x"
	headerCanary  = "hea/der+canary=&% x"
	queryCanary   = "que/ry+canary=&% x"
)

// leaky is an authorization server and an API that tell a client every secret
// they know, where it must not be repeated.
type leaky struct {
	fault  granttest.Fault // what token requests meet
	honest int             // token requests that meet none at first

	asked      atomic.Int32
	sawSecrets atomic.Bool // in a token request
	sawAccess  atomic.Bool // in a request of the app
}

func (l *leaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" || r.URL.Path == "/revoke" {
		l.serveToken(w, r)
		return
	}
	if r.Header.Get("Authorization") == "Bearer "+accessCanary {
		l.sawAccess.Store(true)
	}
	switch r.URL.Path {
	case "/late-body":
		answerRaw(w, "HTTP/1.1 204 No Content\r\n\r\n"+echo(r))
	case "/stray-bytes":
		answerRaw(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"+echo(r))
	case "/bad-trailer":
		answerRaw(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"+r.Header.Get("Authorization")+"\r\n\r\n")
	case "/refuse":
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
	case "/cut":
		panic(http.ErrAbortHandler)
	case "/break":
		_, _ = io.WriteString(w, "the beginning")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/hang":
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	default:
		_, _ = io.WriteString(w, "hello")
	}
}

// echo tells the upstream's clients what one of them has sent.
func echo(r *http.Request) string {
	var head strings.Builder
	_ = r.Header.Write(&head)
	return head.String()
}

// answerRaw sends these bytes, and leaves the connection open to the client.
func answerRaw(w http.ResponseWriter, answer string) {
	conn, _, _ := http.NewResponseController(w).Hijack()
	_, _ = io.WriteString(conn, answer)
	_, _ = io.Copy(io.Discard, conn)
	_ = conn.Close()
}

func (l *leaky) serveToken(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	params, _ := url.ParseQuery(string(body))
	if params.Get("client_secret") == canary && params.Get("password") == paramCanary && r.Header.Get("X-Key") == headerCanary && r.URL.Query().Get("key") == queryCanary {
		l.sawSecrets.Store(true)
	}
	if n := int(l.asked.Add(1)); n > l.honest && l.fault != nil {
		l.fault(w, r, http.HandlerFunc(l.answer))
		return
	}
	l.answer(w, r)
}

func (l *leaky) answer(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": accessCanary, "refresh_token": refreshCanary, "expires_in": 1, "scope": refreshCanary, "token_type": "Bearer",
	})
}

// telling are answers, each with secrets where some client would show them.
func telling() map[string]granttest.Fault {
	everything := canary + " " + accessCanary + " " + refreshCanary
	quoted, _ := json.Marshal(everything)
	raw := func(answer string) granttest.Fault {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}
	faults := map[string]granttest.Fault{
		"nothing amiss":       nil,
		"a page":              granttest.Status(200, "<html>"+everything),
		"an odd expiry":       granttest.Status(200, `{"access_token":"`+accessCanary+`","expires_in":`+string(quoted)+`}`),
		"a bad token":         granttest.Status(200, `{"access_token":`+string(quoted)+`}`),
		"a code":              granttest.Status(400, `{"error":`+string(quoted)+`,"error_description":`+string(quoted)+`}`),
		"a type":              granttest.Status(200, `{"access_token":"`+accessCanary+`","token_type":"mac","mac_key":`+string(quoted)+`}`),
		"an error inside 200": granttest.Status(200, `{"error":`+string(quoted)+`,"access_token":"`+accessCanary+`"}`),
		"a location":          granttest.Redirect(307, "/elsewhere?secret="+url.QueryEscape(everything)),
		"a Retry-After":       granttest.TooManyRequests(accessCanary),
		"a status line":       raw("HTTP/1.1 999 " + everything + "\r\n\r\n"),
		"no HTTP":             raw(everything + "\r\n\r\n"),
		"a bad header":        raw("HTTP/1.1 200 OK\r\n" + everything + "\r\nContent-Length: " + everything + "\r\n\r\n"),
		"a broken chunk":      raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + everything + "\r\n"),
		"a cut":               granttest.Cut,
		"half an answer":      granttest.Truncated,
		"no end":              granttest.Endless,
		"a bomb":              granttest.GzipBomb(1 << 20),
		"no answer":           granttest.Hang,
	}
	for _, status := range []int{200, 401, 403, 404, 500, 503} {
		faults[fmt.Sprint("an echo in ", status)] = granttest.EchoRequest(status)
	}
	return faults
}

// TestNothingEmittedHoldsASecret runs the program at the level that tells most
// through every failure, has it dump its stacks, and looks for the canaries in
// every byte that came out of it.
func TestNothingEmittedHoldsASecret(t *testing.T) {
	var total atomic.Int64
	t.Run("group", func(t *testing.T) {
		scan := func(name string, l *leaky) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				total.Add(int64(scanEmitted(t, l)))
			})
		}
		faults := telling()
		for name, fault := range faults {
			scan(name, &leaky{fault: fault})
		}
		for _, name := range []string{"nothing amiss", "an odd expiry", "an echo in 401", "a cut", "no answer"} {
			scan(name+" to a refresh", &leaky{fault: faults[name], honest: 1})
		}
	})
	t.Logf("no secret in %d bytes", total.Load())
}

func scanEmitted(t *testing.T, l *leaky) int {
	web := httptest.NewServer(l)
	defer web.Close()
	query := "?key=" + url.QueryEscape(queryCanary)
	s := startBinary(t, exec.Command("token-sidecar"),
		"UPSTREAM_URL="+web.URL, "TOKEN_URL="+web.URL+"/token"+query, "REVOCATION_URL="+web.URL+"/revoke"+query,
		"CLIENT_ID=client", "CLIENT_SECRET="+canary, "SCOPE=a b",
		"TOKEN_PARAMETERS=password="+url.QueryEscape(paramCanary), "TOKEN_HEADERS=X-Key="+url.QueryEscape(headerCanary),
		"LOG_LEVEL=debug", "GOTRACEBACK=system", "TOKEN_WAIT=100ms", "TOKEN_REQUEST_TIMEOUT=500ms", "MIN_REFRESH_INTERVAL=10ms",
		"UPSTREAM_RESPONSE_TIMEOUT=200ms", "DRAIN_TIMEOUT=100ms")
	var emitted strings.Builder
	s.until(t, "the token endpoint was asked in vain, or again", func() bool {
		emitted.WriteString(raw(t, s.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
		metrics, _ := send("GET", s.admin+"/metrics")
		return int(l.asked.Load()) > l.honest+1 || matches(`(?m)^token_sidecar_token_(refreshes_total\{.*,result="(error|rejected)"|expiry_anomalies_total\{.*)\} [1-9]`, metrics)
	})
	for _, path := range []string{"/", "/late-body", "/stray-bytes", "/bad-trailer", "/refuse", "/cut", "/break", "/hang"} {
		emitted.WriteString(raw(t, s.address, "POST "+path+"?secret HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"))
	}
	for _, request := range []string{
		"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n",
	} {
		emitted.WriteString(raw(t, s.address, request))
	}
	for _, path := range []string{"/livez", "/readyz", "/startupz", "/metrics", "/debug/pprof/", "/debug/vars", "/"} {
		emitted.WriteString(raw(t, s.admin, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
	}
	if l.honest > 0 && !l.sawAccess.Load() || !l.sawSecrets.Load() {
		t.Errorf("the secrets were not used, so this shows nothing (access token: %v, others: %v)", l.sawAccess.Load(), l.sawSecrets.Load())
	}
	if l.fault == nil {
		s.until(t, "the upstream has said what nobody asked for", func() bool { return strings.Contains(s.output.String(), unasked) })
	}
	if l.honest == 0 {
		s.end(syscall.SIGQUIT) // as a panic does
	} else {
		s.end(syscall.SIGTERM)
	}
	emitted.WriteString(s.output.String())
	if l.honest == 0 && !strings.Contains(s.output.String(), "goroutine 1 ") {
		t.Error("no stacks were dumped")
	}
	for _, secret := range []string{canary, accessCanary, refreshCanary, paramCanary, headerCanary, queryCanary, "client:" + canary} {
		for _, spelling := range granttest.Spellings(secret) {
			if at := strings.Index(emitted.String(), spelling); at >= 0 {
				t.Errorf("%s got out: %s", spelling, emitted.String()[max(0, at-300):at+len(spelling)])
			}
		}
	}
	return emitted.Len()
}

func init() {
	programs["panicking"] = func() {
		secret := tokencache.NewSecret(canary)
		defer func() { panic(fmt.Errorf("%v %+v", recover(), tokencache.Token{Access: secret})) }()
		defer func() { panic(tokencache.Token{Refresh: secret}) }()
		panic(secret)
	}
}

func TestAPanicShowsNoSecret(t *testing.T) {
	command := exec.Command("panicking")
	command.Env = append(os.Environ(), "GOTRACEBACK=system")
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: REDACTED") {
		t.Errorf("got %v, %s", err, out)
	}
	for _, spelling := range granttest.Spellings(canary) {
		if strings.Contains(string(out), spelling) {
			t.Errorf("the panic shows %s: %s", spelling, out)
		}
	}
}

// raw returns all that is answered to what is sent, byte for byte.
func raw(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, request)
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%.20q: %v", request, err)
	}
	return string(answer)
}
