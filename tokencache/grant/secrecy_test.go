package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// What must not be told.

func TestNeitherErrorsNorLogsHoldASecret(t *testing.T) {
	const (
		query   = "que/ry+canary&="
		pass    = "pass/word+canary&="
		access  = "acc/ess+canary&=%"
		refresh = "ref/resh+canary&=%"
	)
	core, logs := observer.New(zap.DebugLevel)
	srv := &granttest.Server{ClientID: testID, ClientSecret: testSecret}
	tokens := func(members map[string]any) granttest.Fault {
		return granttest.Edited(func(answer map[string]any) {
			answer["access_token"], answer["refresh_token"] = access, refresh
			for name, value := range members {
				answer[name] = value
			}
		})
	}
	reflector := func(w http.ResponseWriter, r *http.Request, _ http.Handler) { // of what it gets, wherever it can be read
		body, _ := io.ReadAll(r.Body)
		values, _ := url.ParseQuery(string(body))
		_ = json.NewEncoder(w).Encode(map[string]any{
			"error": values.Get("client_secret"), "token_type": testSecret, "expires_in": testSecret, "scope": testSecret,
		})
	}
	faults := map[string]granttest.Fault{
		"honest":                 tokens(nil),
		"odd expiry":             tokens(map[string]any{"expires_in": access}),
		"less scope":             tokens(map[string]any{"scope": refresh}),
		"bad token":              tokens(map[string]any{"access_token": access + "é"}),
		"long token":             tokens(map[string]any{"access_token": strings.Repeat(access, 2000)}),
		"not bearer":             tokens(map[string]any{"token_type": "DPoP"}),
		"secret as a code":       reflector,
		"secret as a bad number": granttest.Status(200, `{"access_token":"`+access+`","expires_in":`+testSecret+`}`),
		"token in a page":        granttest.Status(200, access+refresh+testSecret),
		"token in the location":  granttest.Redirect(302, "http://other.test/?secret="+url.QueryEscape(testSecret)),
		"secret as Retry-After":  granttest.TooManyRequests(testSecret),
		"truncated":              granttest.Truncated,
		"cut":                    granttest.Cut,
		"bad status line": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			body, _ := io.ReadAll(r.Body)
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, testSecret+" "+string(body)+"\r\n\r\n")
			_ = conn.Close()
		},
		"bad header": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+testSecret+access+"\r\nContent-Length: "+testSecret+"\r\n\r\n")
			_ = conn.Close()
		},
	}
	for _, status := range []int{200, 201, 301, 400, 401, 403, 404, 408, 429, 500, 503} {
		faults[fmt.Sprint("echo of ", status)] = granttest.EchoRequest(status)
	}
	web := serve(t, srv)
	withUser := strings.Replace(web, "http://", "http://user:"+url.QueryEscape(pass)+"@", 1)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	canaries := granttest.Spellings(query, pass, access, refresh, testSecret, testRefresh, testID+":"+testSecret,
		url.QueryEscape(testID)+":"+url.QueryEscape(testSecret))

	check := func(t *testing.T, what, text string) {
		t.Helper()
		for _, canary := range canaries {
			if strings.Contains(text, canary) {
				t.Errorf("%s shows %q: %s", what, canary, text)
			}
		}
	}
	clients := func(addresses ...string) (all []*Client) {
		for _, auth := range clientAuths {
			for _, encoding := range encodings {
				for _, address := range addresses {
					c := clientOf(t, address+"/oauth/token?key="+url.QueryEscape(query), Config{
						Auth: auth, Encoding: encoding, Log: zap.New(core), Scope: "read",
						Parameters: func() url.Values { return url.Values{"password": {pass}} },
						Header:     func() http.Header { return http.Header{"X-Key": {query}} },
					})
					check(t, "the configuration", printed(c, c.cfg, &c.cfg, []Config{c.cfg})+fmt.Sprintf("%v %+v %#v", *c, *c, *c))
					all = append(all, c)
				}
			}
		}
		return all
	}
	try := func(t *testing.T, c *Client, fault granttest.Fault) {
		for _, grantType := range bothGrants {
			srv.Script(fault)
			token, err := ask(t.Context(), c, grantType)
			zap.New(core).Info("outcome", zap.Error(err), zap.Any("error", err), zap.Any("token", token))
			if e, ok := errors.AsType[*Error](err); ok {
				check(t, "the error", printed(err, *e))
			}
		}
	}
	heard := clients(withUser)
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for _, c := range heard {
				try(t, c, fault)
			}
		})
	}
	t.Run("unheard", func(t *testing.T) {
		for _, c := range clients(closed.URL, "https"+strings.TrimPrefix(web, "http")) {
			try(t, c, nil)
		}
	})
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, entry := range logs.All() {
		line, err := encoder.EncodeEntry(entry.Entry, entry.Context)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "the log", line.String())
		check(t, "the log", fmt.Sprintf("%+v", entry.ContextMap()))
	}
}

// printed is all that can be made of values by printing them.
func printed(values ...any) string {
	var b strings.Builder
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&b, verb, v)
		}
		_ = json.NewEncoder(&b).Encode(v)
		line, _ := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{}, []zap.Field{zap.Any("a", v), zap.Reflect("r", v)})
		b.Write(line.Bytes())
	}
	return b.String()
}
