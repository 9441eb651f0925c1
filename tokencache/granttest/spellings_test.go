package granttest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

func TestASecretIsFoundHoweverItIsSpelt(t *testing.T) {
	const secret = "a b/c+d\"e\\f&<g>?é~x" // whose encodings all differ, and base64 has to be padded
	holds := func(text string) bool {
		return slices.ContainsFunc(granttest.Spellings("other", secret, "id:"+secret), func(s string) bool { return strings.Contains(text, s) })
	}
	marshal := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var plain bytes.Buffer
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode("Bearer " + secret); err != nil {
		t.Fatal(err)
	}
	basic := &http.Request{Header: http.Header{}}
	basic.SetBasicAuth("id", secret)
	for name, text := range map[string]string{
		"plain":                 "x" + secret + "x",
		"quoted":                fmt.Sprintf("%q", "Bearer "+secret),
		"form":                  url.Values{"client_secret": {secret}}.Encode(),
		"path":                  "http://host/" + url.PathEscape(secret),
		"JSON":                  marshal("Bearer " + secret),
		"JSON without HTML":     plain.String(),
		"JSON in JSON":          marshal(marshal("Bearer " + secret)),
		"base64, not padded":    base64.RawStdEncoding.EncodeToString([]byte(secret)),
		"base64":                base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64 for URLs":       base64.URLEncoding.EncodeToString([]byte(secret)),
		"so, and not padded":    base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"HTTP Basic":            fmt.Sprint(basic.Header),
		"hexadecimal":           fmt.Sprintf("%x", secret),
		"hexadecimal, in large": fmt.Sprintf("%X", secret),
	} {
		if !holds(text) {
			t.Errorf("%s: not found in %s", name, text)
		}
	}
	if text := "a b/c+d"; holds(text) {
		t.Errorf("found in %s", text)
	}
}
