package tokencache_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	const canary = "s3cr:et/+canary&=% x"
	secret := tokencache.NewSecret(canary)
	type hidden struct{ inner tokencache.Secret }
	values := map[string]any{
		"value": secret, "pointer": &secret, "slice": []tokencache.Secret{secret},
		"token": tokencache.Token{Access: secret, Refresh: secret}, "unexported field": hidden{secret},
	}
	for name, value := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p"} {
			if out := fmt.Sprintf(verb, value); strings.Contains(out, canary) || strings.Contains(out, fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of a %s shows the secret: %s", verb, name, out)
			}
		}
		if out, _ := json.Marshal(value); strings.Contains(string(out), canary) {
			t.Errorf("JSON of a %s shows the secret: %s", name, out)
		}
		entry := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
		out, err := entry.EncodeEntry(zapcore.Entry{}, []zapcore.Field{zap.Any("secret", value), zap.Reflect("again", value)})
		if err != nil || strings.Contains(out.String(), canary) {
			t.Errorf("zap of a %s shows the secret: %s %v", name, out, err)
		}
	}
	if got := fmt.Sprint(secret); got != "REDACTED" {
		t.Errorf("got %q, want REDACTED", got)
	}
	if got := fmt.Sprintf("%q", tokencache.NewSecret("")); got != "" {
		t.Errorf("no secret prints as %q", got)
	}
	if secret.Reveal() != canary || secret.IsZero() || tokencache.NewSecret("").Reveal() != "" {
		t.Error("Reveal or IsZero is wrong")
	}
}
