package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// However a configuration is printed, by whatever mistake, it shows no secret.
func TestAConfigurationPrintsNoSecret(t *testing.T) {
	secret := url.QueryEscape(canary)
	cfg, err := loadConfig(map[string]string{
		"UPSTREAM_URL": "https://api.test/v1", "TOKEN_URL": "https://auth.test/token?key=" + secret, "REFRESH_URL": "https://auth.test/refresh?key=" + secret,
		"CLIENT_ID": "id", "CLIENT_SECRET": canary, "TOKEN_PARAMETERS": "password=" + secret, "TOKEN_HEADERS": "X-Key=" + secret,
		"TOKEN_PROXY_URL": "http://user:" + secret + "@proxy.test", "UPSTREAM_PROXY_URL": "http://user:" + secret + "@proxy.test",
	})
	if err != nil {
		t.Fatal(err)
	}
	a := newApp(cfg, zap.NewNop(), nil)
	var out strings.Builder
	for _, value := range []any{cfg, &cfg, []config{cfg}, map[string]config{"a": cfg}, cfg.TokenURL, &cfg.TokenURL, cfg.UpstreamURL, cfg.TokenProxyURL, a.secret, a.cache, a.probe} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		_ = json.NewEncoder(&out).Encode(value)
		line, _ := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{}, []zap.Field{zap.Any("a", value), zap.Reflect("r", value)})
		out.Write(line.Bytes())
	}
	fmt.Fprintf(&out, "%v %+v %#v", a, a, a)
	for _, spelling := range granttest.Spellings(canary) {
		if at := strings.Index(out.String(), spelling); at >= 0 {
			t.Errorf("%s is printed: %s", spelling, out.String()[max(0, at-300):at+len(spelling)])
		}
	}
	if !strings.Contains(out.String(), "https://auth.test/token") {
		t.Error("not even the endpoint is printed, so this test shows nothing")
	}
}
