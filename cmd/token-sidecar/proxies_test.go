package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// A forwarder is a forward proxy that notes what it is asked for, by whom.
type forwarder struct {
	url     string
	refuses bool // and says whom it refuses, wherever an answer has room for it
	seen    lockedBuffer
}

func newForwarder(t *testing.T) *forwarder {
	f := &forwarder{}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.url = strings.Replace(server.URL, "://", "://"+url.UserPassword("user", canary).String()+"@", 1)
	return f
}

func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credentials := r.Header.Get("Proxy-Authorization")
	plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(credentials, "Basic "))
	fmt.Fprintf(&f.seen, "%s %s for %s\n", r.Method, r.RequestURI, plain)
	conn, _, _ := http.NewResponseController(w).Hijack()
	defer conn.Close()
	if f.refuses {
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 407 no %s\r\nX-Who: %s\r\nConnection: close\r\n\r\n%s %s", plain, plain, plain, credentials)
		return
	}
	to, err := net.Dial("tcp", r.Host)
	if err != nil {
		return
	}
	defer to.Close()
	if r.Method == http.MethodConnect {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(to, conn) }()
	} else {
		r.Header.Set("Connection", "close")
		_ = r.Write(to)
	}
	_, _ = io.Copy(conn, to)
}

// secured is a server of tokens and of an API by https, as settings.
func secured(t *testing.T) []string {
	server := httptest.NewTLSServer(&granttest.Server{})
	t.Cleanup(server.Close)
	f := folder{t, t.TempDir()}
	f.write("ca", encode("CERTIFICATE", server.Certificate().Raw))
	return []string{"UPSTREAM_URL=" + server.URL, "TOKEN_URL=" + server.URL + "/oauth/token", "TOKEN_CA_FILE=" + f.file("ca"), "UPSTREAM_CA_FILE=" + f.file("ca")}
}

func TestRequestsTakeTheProxyOfTheirLeg(t *testing.T) {
	by := regexp.QuoteMeta(" for user:" + canary)
	for name, test := range map[string]struct {
		settings                []string
		tokens, upstream, paths string
	}{
		"http":  {nil, `POST http://[\d.:]+/oauth/token`, `GET http://[\d.:]+/orders`, "400"}, // a whole URL cannot hold such a path
		"https": {secured(t), `CONNECT [\d.:]+`, `CONNECT [\d.:]+`, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			tokens, upstream := newForwarder(t), newForwarder(t)
			r := runApp(t, func(http.ResponseWriter, *http.Request) {}, append(test.settings, "TOKEN_PROXY_URL="+tokens.url, "UPSTREAM_PROXY_URL="+upstream.url)...)
			if got := r.answersTo(t, "GET /orders HTTP/1.1\r\nHost: localhost\r\n\r\n", atOnce); got != "200" {
				t.Errorf("answered %s\n%s", got, r.log)
			}
			if got := tokens.seen.String(); !matches("^"+test.tokens+by+"\n$", got) {
				t.Errorf("the proxy before the token endpoint saw %s", got)
			}
			if got := upstream.seen.String(); !matches("^"+test.upstream+by+"\n$", got) {
				t.Errorf("the proxy before the upstream saw %s", got)
			}
			if got := r.answersTo(t, "GET /a%2Fb|c HTTP/1.1\r\nHost: localhost\r\n\r\n", atOnce); got != test.paths {
				t.Errorf("/a%%2Fb|c: answered %s, want %s", got, test.paths)
			}
			r.ends(t)
		})
	}
}

// A proxy may tell whom it refuses, which is for nobody else to know.
func TestThePasswordOfAProxyIsNotToldWhenItRefuses(t *testing.T) {
	for name, settings := range map[string][]string{"http": nil, "https": secured(t)} {
		for leg, want := range map[string]string{"TOKEN_PROXY_URL": "503", "UPSTREAM_PROXY_URL": "502"} {
			t.Run(name+" "+leg, func(t *testing.T) {
				by := newForwarder(t)
				by.refuses = true
				r := runApp(t, func(http.ResponseWriter, *http.Request) {}, append(settings, leg+"="+by.url, "TOKEN_WAIT=1s")...)
				answer := raw(t, r.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
				if !strings.HasPrefix(answer, "HTTP/1.1 "+want) || !strings.Contains(answer, "Proxy-Status: token-sidecar; error=") {
					t.Errorf("answered %s", answer)
				}
				answer += raw(t, r.admin, "GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
				r.ends(t)
				for _, secret := range granttest.Spellings(canary, "user:"+canary) {
					if told := answer + r.log.String(); strings.Contains(told, secret) {
						t.Errorf("%s is told: %s", secret, told)
					}
				}
				if !strings.Contains(by.seen.String(), canary) {
					t.Error("the proxy was told no password, so this shows nothing")
				}
			})
		}
	}
}
