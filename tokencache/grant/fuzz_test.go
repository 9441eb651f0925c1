package grant

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

// fuzzStatuses are one of each kind, for a byte to choose from.
var fuzzStatuses = []int{200, 201, 101, 302, 400, 401, 404, 429, 500, 503}

// FuzzTokenResponse holds that every answer to either grant becomes a token
// that can be used, or an error that quotes nothing of it.
func FuzzTokenResponse(f *testing.F) {
	for i, v := range vectors {
		f.Add(byte(i/5), []byte(v.body()), v.date)
	}
	for _, body := range []string{
		"", "{", "{}", "[]", "null", "<html>", `{"error":"invalid_grant"}`, `{"errcode":40001}`, `{"access_token":"a"}{}`,
		`{"access_token":"a","access_token":"b"}`, `{"access_token":"a\r\nb"}`, "{\"access_token\":\"\xff\"}", `{"ACCESS_TOKEN":"a"}`,
		`{"access_token":"a","token_type":"DPoP"}`, `{"access_token":"a","refresh_in":1e300,"refresh_expires_in":"1h","scope":["x"]}`,
		"access_token=a&expires_in=3600&scope=x", "error=x", "access_token=%00",
	} {
		f.Add(byte(0), []byte(body), "Thu, 01 Jan 2026 01:00:00 GMT")
	}

	const endpoint = "https://auth.test/token"
	u, _ := url.Parse(endpoint)
	c := New(Config{TokenURL: u, Scope: "read write"})
	known := textsOfPlainAnswers(endpoint)
	f.Fuzz(func(t *testing.T, choice byte, body []byte, date string) {
		status := fuzzStatuses[int(choice)%len(fuzzStatuses)]
		header := http.Header{"Date": {date}, "Retry-After": {date}}
		for _, grantType := range bothGrants {
			now, skew := c.cfg.Expiry.reference(header, t0)
			if skew.Abs() > credibleSkew || now.Sub(t0) != skew {
				t.Errorf("%v ahead, so now is %v", skew, now)
			}
			got, err := location{endpoint, grantType}.judge(answer{status, header, body}, now)
			if err != nil {
				checkError(t, err, known)
				continue
			}
			if status >= 300 || status < 200 {
				t.Errorf("%d was accepted", status)
			}
			c.noteScope(got, grantType)
			checkToken(t, c.token(got, t0, now))
		}
	})
}

// textsOfPlainAnswers are all that may be said of any answer, but for its code.
func textsOfPlainAnswers(endpoint string) map[string]bool {
	texts := map[string]bool{}
	for _, grantType := range bothGrants {
		for _, status := range fuzzStatuses {
			for _, body := range []string{
				"", "{}", `{"error":"x"}`, `{"error":"use_dpop_nonce"}`, `{"error":"invalid_client"}`, `{"access_token":" "}`, `{"access_token":"a","token_type":"mac"}`,
				`{"access_token":"a","token_type":"DPoP"}`, `{"access_token":"a","token_type":"pop"}`, `{"access_token":"a","token_type":"n_a"}`,
			} {
				_, err := location{endpoint, grantType}.judge(answer{status, http.Header{}, []byte(body)}, t0)
				if err != nil {
					texts[textWithoutCode(err)] = true
				}
			}
		}
	}
	return texts
}

func textWithoutCode(err error) string {
	e := *err.(*Error)
	e.Code = ""
	return e.Error()
}

func checkError(t *testing.T, err error, known map[string]bool) {
	t.Helper()
	if !known[textWithoutCode(err)] {
		t.Errorf("%q is said of this answer alone", err)
	}
	e := err.(*Error)
	if e.Code != "" && !slices.Contains(knownCodes, e.Code) {
		t.Errorf("unknown code %q is shown", e.Code)
	}
	if !slices.Contains(Reasons, e.Reason()) {
		t.Errorf("unknown reason %q", e.Reason())
	}
	if e.RetryAfter() < 0 || e.RetryAfter() > longest || (e.RetryAfter() > 0) != slices.Contains([]string{"rate_limited", "unavailable"}, e.Reason()) {
		t.Errorf("%v: retry after %v", err, e.RetryAfter())
	}
	if e.GrantType == refreshToken && errors.Is(err, tokencache.ErrClientRejected) ||
		e.GrantType == clientCredentials && (errors.Is(err, tokencache.ErrRefreshTokenRejected) || errors.Is(err, tokencache.ErrOutcomeUnknown)) {
		t.Errorf("%v: the sentinel is of the other grant", err)
	}
}

func checkToken(t *testing.T, token tokencache.Token) {
	t.Helper()
	access := token.Access.Reveal()
	if access == "" || len(access) > 16<<10 {
		t.Errorf("a token of %d bytes", len(access))
	}
	for _, b := range []byte(access) {
		if b <= ' ' || b >= 0x7f || strings.IndexByte(`,"\`, b) >= 0 {
			t.Errorf("token %q holds %q", access, b)
		}
	}
	remaining := token.Expiry.Sub(token.Issued)
	for name, span := range map[string]time.Duration{"remaining": remaining, "lifetime": token.Lifetime} {
		if span < time.Second || span > longest || span%time.Second != 0 {
			t.Errorf("%s: %v", name, span)
		}
	}
	if token.Lifetime > remaining || token.Issued != t0 {
		t.Errorf("planned within %v of %v from %v", token.Lifetime, remaining, token.Issued)
	}
	if token.RefreshIn < 0 || token.RefreshIn > longest {
		t.Errorf("refresh in %v", token.RefreshIn)
	}
	if life := token.RefreshExpiry.Sub(t0); !token.RefreshExpiry.IsZero() && (life < time.Second || life > longest) {
		t.Errorf("the refresh token lives %v", life)
	}
}

// FuzzExpiresIn holds that no value of expires_in makes a token endless or
// dead on arrival, and that what is not believed is told.
func FuzzExpiresIn(f *testing.F) {
	formats := []Format{Auto, Seconds, Milliseconds, Unix, UnixMilliseconds, Ignore, ""}
	for _, v := range vectors {
		if parsed, err := parseFields([]byte(v.body())); err == nil && parsed["expires_in"] != nil {
			f.Add(byte(slices.Index(formats, v.format)), string(parsed["expires_in"]))
		}
	}
	for i := range formats {
		for _, value := range []string{`"0x1p40"`, `"1_000"`, `"-0"`, `1e14`, `1e11`, `99999999999.9`, `"1h"`, `"-1ns"`, `"2e9s"`, `"0000-01-01T00:00:00Z"`, `"9999-12-31T23:59:59+00:00"`, `{}`, `"inf"`} {
			f.Add(byte(i), value)
		}
	}
	f.Fuzz(func(t *testing.T, choice byte, value string) {
		rule := ExpiryRule{Format: formats[int(choice)%len(formats)], Default: 10 * time.Second}
		life := rule.lifetime(fields{"expires_in": json.RawMessage(value)}, t0)
		if life.remaining < time.Second || life.remaining > longest || life.remaining%time.Second != 0 {
			t.Errorf("%s: remaining %v", value, life.remaining)
		}
		believed := life.source != "default"
		switch {
		case len(life.anomalies) > 1, believed && len(life.anomalies) > 0:
			t.Errorf("%s: %+v", value, life)
		case !believed && len(life.anomalies) == 0 && life.remaining != rule.Default:
			t.Errorf("%s: %v by default, want %v", value, life.remaining, rule.Default)
		case !believed && len(life.anomalies) == 1 && life.remaining != leastAfterAnomaly:
			t.Errorf("%s: %v by default, want %v", value, life.remaining, leastAfterAnomaly)
		case rule.Format == Ignore && believed:
			t.Errorf("%s was not ignored", value)
		}
		refresh := rule.refreshLifetime(fields{"refresh_expires_in": json.RawMessage(value)}, t0)
		if refresh < 0 || refresh > longest || believed && refresh != life.remaining {
			t.Errorf("%s: %v as refresh_expires_in, %v as expires_in", value, refresh, life.remaining)
		}
	})
}

// FuzzRetryAfter holds that no value makes a wait negative or endless.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"", "0", "7", " 7\t", "-7", "1.9", "1e400", "NaN", "inf", "0x10", "100000000000", "soon",
		"Thu, 01 Jan 2026 00:02:00 GMT", "Thursday, 01-Jan-26 00:02:00 GMT", "Thu Jan  1 00:02:00 2026",
		"Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 2026 00:02:00 CET",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got := parseRetryAfter(value, t0)
		if got < 0 || got > longest || got%time.Second != 0 {
			t.Errorf("%q: got %v", value, got)
		}
		if again := parseRetryAfter(" "+value+"\t", t0); again != got {
			t.Errorf("%q: got %v, between blanks %v", value, got, again)
		}
		if err := judgedRetryAfter(value); err.RetryAfter() == 0 {
			t.Errorf("%q: asked for patience, got none", value)
		}
	})
}

func judgedRetryAfter(value string) *Error {
	header := http.Header{"Retry-After": {value}}
	_, err := location{"", refreshToken}.judge(answer{429, header, nil}, t0)
	return err.(*Error)
}
