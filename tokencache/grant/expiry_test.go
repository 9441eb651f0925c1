package grant

import (
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// t0 is the local time at which every vector is answered.
var t0 = time.Unix(1767225600, 0) // 2026-01-01T00:00:00Z

// A vector is an answer of a token endpoint, and what is to be made of it.
type vector struct {
	number    int
	members   string // of the answer, beside access_token
	token     string // "": an opaque one
	format    Format // "": Auto
	date      string // "": t0
	source    string
	remaining int // seconds, before any cap
	effective int // seconds, within a Max of 24 h
	anomaly   string
}

const noDate = "none"

var vectors = []vector{
	{1, `"expires_in": 3600`, "", "", "", "seconds", 3600, 3600, ""},
	{2, `"expires_in": "3599"`, "", "", "", "seconds", 3599, 3599, ""},
	{3, `"expires_in": " 3600 "`, "", "", "", "seconds", 3600, 3600, ""},
	{4, `"expires_in": 3599.7`, "", "", "", "seconds", 3599, 3599, ""},
	{5, `"expires_in": 3600.0`, "", "", "", "seconds", 3600, 3600, ""},
	{6, `"expires_in": 3.6e3`, "", "", "", "seconds", 3600, 3600, ""},
	{7, ``, "", "", "", "default", 600, 600, ""},
	{8, `"expires_in": null`, "", "", "", "default", 600, 600, ""},
	{9, `"expires_in": ""`, "", "", "", "default", 600, 600, ""},
	{10, `"expires_in": 0`, "", "", "", "default", 600, 600, "not_positive"},
	{11, `"expires_in": -1`, "", "", "", "default", 600, 600, "not_positive"},
	{12, `"expires_in": true`, "", "", "", "default", 600, 600, "unreadable"},
	{13, `"expires_in": "never"`, "", "", "", "default", 600, 600, "unreadable"},
	{14, `"expires_in": 1769817600`, "", "", "", "unix", 2592000, 86400, ""}, // Makini
	{15, `"expires_in": 1767229200`, "", "", "", "unix", 3600, 3600, ""},
	{16, `"expires_in": "1767229200"`, "", "", "", "unix", 3600, 3600, ""},
	{17, `"expires_in": 1767229200000`, "", "", "", "unix_ms", 3600, 3600, ""},
	{18, `"expires_in": 1767229800`, "", "", "Thu, 01 Jan 2026 01:00:00 GMT", "unix", 600, 600, ""},
	{19, `"expires_in": 1767229800`, "", "", noDate, "unix", 4200, 4200, ""}, // wrong, and only a 401 can tell
	{20, `"expires_in": 1767222600`, "", "", "Wed, 31 Dec 2025 23:00:00 GMT", "unix", 600, 600, ""},
	{21, `"expires_in": 1767222600`, "", "", noDate, "default", 600, 600, "past"},
	{22, `"expires_in": 1767226200`, "", "", "Thu, 01 Jan 1970 00:00:00 GMT", "unix", 600, 600, ""},
	{23, `"expires_in": 1715674414`, "", "", "", "default", 600, 600, "past"}, // as Makini's page has it
	{24, `"expires_in": 315360000`, "", "", "", "seconds", 315360000, 86400, ""},
	{25, `"expires_in": 999999999`, "", "", "", "seconds", 999999999, 86400, ""},
	{26, `"expires_in": 1000000000`, "", "", "", "default", 600, 600, "past"},
	{27, `"expires_in": 2147483647`, "", "", "", "unix", 380258047, 86400, ""},
	{28, `"expires_in": 9999999999`, "", "", "", "unix", 8232774399, 86400, ""},
	{29, `"expires_in": 253402300799`, "", "", "", "default", 600, 600, "past"},
	{30, `"expires_in": 9223372036854775807`, "", "", "", "default", 600, 600, "implausible"},
	{31, `"expires_in": "1e400"`, "", "", "", "default", 600, 600, "unreadable"},
	{32, `"expires_in": 900000`, "", "", "", "seconds", 900000, 86400, ""}, // milliseconds, which none can tell
	{33, `"expires_in": 900000`, "", Milliseconds, "", "milliseconds", 900, 900, ""},
	{34, `"expires_in": 900000`, jwt(`{"exp":1767226500}`), "", "", "jwt_exp", 900, 900, ""},
	{35, ``, jwt(`{"exp":1767226800}`), "", "", "jwt_exp", 1200, 1200, ""},
	{36, `"expires_in": 3600`, jwt(`{"exp":1767225900}`), "", "", "jwt_exp", 300, 300, ""},
	{37, `"expires_in": 3600`, jwt(`{"exp":1767225300}`), "", "", "seconds", 3600, 3600, "past"},
	{38, `"expires_in": 299`, jwt(`{"exp":1767225610}`) + ".d.e", "", "", "seconds", 299, 299, ""}, // a JWE
	{39, `"expires_in": 1767226200`, jwt(`{"exp":1767226200}`), "", "", "unix", 600, 600, ""},
	{40, `"expires_in": 3600, "expiration": 1767229200`, "", "", "", "seconds", 3600, 3600, ""},
	{41, `"expires_at": 1767246166, "expires_in": 20566`, "", "", "", "seconds", 20566, 20566, ""},
	{42, `"expires_at": "2026-01-01T01:00:00Z"`, "", "", "", "expires_at", 3600, 3600, ""},
	{43, `"expires_in": "3599", "ext_expires_in": "3599", "expires_on": "1767229199"`, "", "", "", "seconds", 3599, 3599, ""},
	{44, `"expires_in": 2`, "", "", "", "seconds", 2, 2, ""},
	{45, `"expiresIn": 1800`, "", "", "", "seconds", 1800, 1800, ""},
	{46, `"expires_in": "2026-01-01T00:30:00Z"`, "", "", "", "rfc3339", 1800, 1800, ""},
	{47, `"expires_in": 1769817600`, "", Seconds, "", "seconds", 1769817600, 86400, ""},
	{48, `"expires_in": 3600`, "", Unix, "", "default", 600, 600, "contradiction"},
	{49, `"expires_in": 3600`, "", Ignore, "", "default", 600, 600, ""},
	{50, `"expires_in": 1767232800000`, "", UnixMilliseconds, "", "unix_ms", 7200, 7200, ""},
	{51, `"expires": 5183999`, "", "", "", "seconds", 5183999, 86400, ""},
	{52, `"expires_in": 300, "refresh_expires_in": 0`, "", "", "", "seconds", 300, 300, ""},
}

// jwt is a signed JWT with these claims.
func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func (v vector) body() string {
	token := v.token
	if token == "" {
		token = "opaque"
	}
	members := v.members
	if members != "" {
		members = ", " + members
	}
	return fmt.Sprintf(`{"access_token": %q%s}`, token, members)
}

func (v vector) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	switch v.date { // "" leaves it to the server, whose clock the bubble shares
	case "":
	case noDate:
		w.Header()["Date"] = nil
	default:
		w.Header().Set("Date", v.date)
	}
	_, _ = io.WriteString(w, v.body())
}

// oddities is a Recorder.
type oddities struct {
	anomalies []string
	skew      time.Duration
}

func (o *oddities) ExpiryAnomaly(kind string)     { o.anomalies = append(o.anomalies, kind) }
func (o *oddities) ClockSkew(ahead time.Duration) { o.skew = ahead }

func TestExpiryVectors(t *testing.T) {
	for i, v := range vectors {
		if v.number != i+1 {
			t.Fatalf("vector %d is missing", i+1)
		}
		t.Run(strconv.Itoa(v.number), func(t *testing.T) {
			synctest.Test(t, v.test)
		})
	}
}

// test has v answered at t0 by a server of the same clock.
func (v vector) test(t *testing.T) {
	time.Sleep(time.Until(t0))
	core, logs := observer.New(zap.DebugLevel)
	odd := &oddities{}
	c := clientOf(t, "http://server/", Config{
		Transport: overPipe(t, v), Recorder: odd, Log: zap.New(core),
		Expiry: ExpiryRule{Format: v.format, Default: 10 * time.Minute, Max: 24 * time.Hour},
	})
	token, err := c.ClientCredentials(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := time.Duration(min(v.remaining, 10*365*86400)) * time.Second
	if got := token.Expiry.Sub(t0); got != want {
		t.Errorf("remaining: got %v, want %v", got, want)
	}
	if got, want := token.Lifetime, time.Duration(v.effective)*time.Second; got != want {
		t.Errorf("effective: got %v, want %v", got, want)
	}
	if !token.RefreshExpiry.IsZero() {
		t.Errorf("the refresh token expires at %v, which nobody said", token.RefreshExpiry)
	}
	var anomalies []string
	if v.anomaly != "" {
		anomalies = []string{v.anomaly}
	}
	if !slices.Equal(odd.anomalies, anomalies) || logs.Len() != len(anomalies) {
		t.Errorf("anomalies: got %v in %v, want %v", odd.anomalies, logs.All(), anomalies)
	}

	f, err := parseFields([]byte(v.body()))
	if err != nil {
		t.Fatal(err)
	}
	header := http.Header{}
	if v.date != noDate {
		header.Set("Date", v.date)
	}
	now, _ := c.cfg.Expiry.reference(header, t0)
	if got := c.cfg.Expiry.lifetime(f, now).source; got != v.source {
		t.Errorf("source: got %s, want %s", got, v.source)
	}
}

// lifetimeAt is what rule makes of an answer with these members at t0.
func lifetimeAt(t *testing.T, rule ExpiryRule, token, members string) lifetime {
	t.Helper()
	f, err := parseFields([]byte(vector{members: members, token: token}.body()))
	if err != nil {
		t.Fatal(err)
	}
	return rule.lifetime(f, t0)
}

func TestExpiryBeyondTheVectors(t *testing.T) {
	soon, broken := jwt(`{"exp":1767225900}`), jwt(`{"exp":`)
	for _, tt := range []struct {
		name, token, members string
		rule                 ExpiryRule
		want                 string
	}{
		{"a duration", "", `"expires_in":"1h30m"`, ExpiryRule{}, "1h30m0s duration []"},
		{"a duration that is over", "", `"expires_in":"-1h"`, ExpiryRule{}, "10m0s default [not_positive]"},
		{"less than a second", "", `"expires_in":0.9`, ExpiryRule{}, "10m0s default [not_positive]"},
		{"milliseconds that make no second", "", `"expires_in":999`, ExpiryRule{Format: Milliseconds}, "10m0s default [not_positive]"},
		{"a time past", "", `"expires_in":"2025-12-31T23:59:59Z"`, ExpiryRule{}, "10m0s default [past]"},
		{"a time in another zone", "", `"expires_in":"2026-01-01T01:30:00+01:00"`, ExpiryRule{}, "30m0s rfc3339 []"},
		{"a time beyond all durations", "", `"expires_in":"9999-12-31T23:59:59Z"`, ExpiryRule{}, "87600h0m0s rfc3339 []"},
		{"not a number", "", `"expires_in":"NaN"`, ExpiryRule{}, "10m0s default [unreadable]"},
		{"infinity", "", `"expires_in":"+Inf"`, ExpiryRule{}, "10m0s default [unreadable]"},
		{"a list", "", `"expires_in":[3600]`, ExpiryRule{}, "10m0s default [unreadable]"},
		{"an object", "", `"expires_in":{"s":3600}`, ExpiryRule{}, "10m0s default [unreadable]"},
		{"the last of the Unix times", "", `"expires_in":99999999999`, ExpiryRule{}, "87600h0m0s unix []"},
		{"the first of the milliseconds", "", `"expires_in":100000000000`, ExpiryRule{}, "10m0s default [past]"},
		{"the last of the milliseconds", "", `"expires_in":99999999999999`, ExpiryRule{}, "87600h0m0s unix_ms []"},
		{"the first number to mean nothing", "", `"expires_in":100000000000000`, ExpiryRule{}, "10m0s default [implausible]"},
		{"the first of the names that is there", "", `"expires":7,"expiresIn":8,"expires_in":null`, ExpiryRule{}, "8s seconds []"},
		{"names of another case", "", `"EXPIRES_IN":7,"Expires":8`, ExpiryRule{}, "10m0s default []"},
		{"unix_ms in place of unix", "", `"expires_in":1767229200000`, ExpiryRule{Format: Unix}, "10m0s default [contradiction]"},
		{"unix in place of unix_ms", "", `"expires_in":1767229200`, ExpiryRule{Format: UnixMilliseconds}, "10m0s default [contradiction]"},
		{"more than there is", "", `"expires_in":1e300`, ExpiryRule{Format: Seconds}, "87600h0m0s seconds []"},
		{"expires_at is no span", "", `"expires_at":3600`, ExpiryRule{}, "10m0s default [contradiction]"},
		{"expires_at in milliseconds", "", `"expires_at":1767229200000`, ExpiryRule{}, "1h0m0s expires_at []"},
		{"the shortest wins", "", `"expires_in":3600,"expires_at":1767226200,"expires_on":1767225900`, ExpiryRule{}, "5m0s expires_on []"},
		{"a good source beside a bad one", "", `"expires_in":-1,"expires_on":"1/1/2026 1:00:00 AM","expiration":1767225900`, ExpiryRule{},
			"5m0s expiration [not_positive unreadable]"},
		{"expires_in ignored, not expires_at", "", `"expires_in":60,"expires_at":1767225900`, ExpiryRule{Format: Ignore}, "5m0s expires_at []"},
		{"a JWT", soon, `"expires_in":3600`, ExpiryRule{}, "5m0s jwt_exp []"},
		{"IgnoreJWT", soon, `"expires_in":3600`, ExpiryRule{IgnoreJWT: true}, "1h0m0s seconds []"},
		{"IgnoreJWT with nothing else", soon, ``, ExpiryRule{IgnoreJWT: true}, "10m0s default []"},
		{"a JWT may not prolong", jwt(`{"exp":1767312000}`), `"expires_in":3600`, ExpiryRule{}, "1h0m0s seconds []"},
		{"a JWT without exp", jwt(`{}`), `"expires_in":3600`, ExpiryRule{}, "1h0m0s seconds []"},
		{"a JWT with exp in milliseconds", jwt(`{"exp":1767225900000}`), `"expires_in":3600`, ExpiryRule{}, "1h0m0s seconds [contradiction]"},
		{"a JWT with EXP", jwt(`{"EXP":1767225900}`), `"expires_in":3600`, ExpiryRule{}, "1h0m0s seconds []"},
		{"three parts that are no JWT", "a.b.c", ``, ExpiryRule{}, "10m0s default []"},
		{"a JWT of bad JSON", broken, ``, ExpiryRule{}, "10m0s default []"},
		{"two parts of a JWT", strings.TrimSuffix(soon, ".c2ln"), ``, ExpiryRule{}, "10m0s default []"},
		{"a JWT with padding", "e30.e30=.c2ln", ``, ExpiryRule{}, "10m0s default []"},
		{"Default", "", ``, ExpiryRule{Default: 10 * time.Second}, "10s default []"},
		{"Default after an anomaly", "", `"expires_in":0`, ExpiryRule{Default: 10 * time.Second}, "1m0s default [not_positive]"},
		{"an anomaly beside a good source", "", `"expires_in":0,"expires_at":1767225610`, ExpiryRule{}, "10s expires_at [not_positive]"},
	} {
		life := lifetimeAt(t, tt.rule, tt.token, tt.members)
		if got := fmt.Sprintf("%v %s %v", life.remaining, life.source, life.anomalies); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
		for _, kind := range life.anomalies {
			if !slices.Contains(AnomalyKinds, kind) {
				t.Errorf("%s: %q is not one of AnomalyKinds", tt.name, kind)
			}
		}
	}
}

func TestAFractionOfASecondIsNeverAdded(t *testing.T) {
	for _, expiresIn := range []string{`1767229200`, `1767229200000`, `"2026-01-01T01:00:00Z"`} {
		life := ExpiryRule{}.lifetime(fields{"expires_in": []byte(expiresIn)}, t0.Add(time.Millisecond))
		if got, want := life.remaining, time.Hour-time.Second; got != want {
			t.Errorf("%s: got %v, want %v", expiresIn, got, want)
		}
	}
}

func TestMaxBoundsThePlanAndNotTheToken(t *testing.T) {
	for _, tt := range []struct{ remaining, max, want time.Duration }{
		{time.Hour, 0, time.Hour},
		{time.Hour, time.Minute, time.Minute},
		{time.Hour, 2 * time.Hour, time.Hour},
	} {
		if got := (ExpiryRule{Max: tt.max}).planned(tt.remaining); got != tt.want {
			t.Errorf("%v within %v: got %v, want %v", tt.remaining, tt.max, got, tt.want)
		}
	}
}

func TestRefreshTokensExpireByTheSameRule(t *testing.T) {
	for members, want := range map[string]time.Duration{
		``:                                   0,
		`"refresh_expires_in":0`:             0, // Keycloak: none
		`"refresh_expires_in":-1`:            0,
		`"refresh_expires_in":"never"`:       0,
		`"refresh_expires_in":1800`:          30 * time.Minute,
		`"refresh_token_expires_in":"1800"`:  30 * time.Minute, // Apigee
		`"refresh_expires_in":1767227400`:    30 * time.Minute,
		`"refresh_expires_in":1767227400000`: 30 * time.Minute,
		`"refresh_expires_in":1e9`:           0,
		`"refresh_expires_in":999999999`:     longest,
	} {
		f, err := parseFields([]byte(vector{members: members}.body()))
		if err != nil {
			t.Fatal(err)
		}
		if got := (ExpiryRule{}).refreshLifetime(f, t0); got != want {
			t.Errorf("%s: got %v, want %v", members, got, want)
		}
	}
}

func TestRefreshInIsASpanOrNothing(t *testing.T) {
	for value, want := range map[string]time.Duration{
		`null`: 0, `1800`: 30 * time.Minute, `"1800"`: 30 * time.Minute, `"30m"`: 30 * time.Minute, `1799.9`: 1799 * time.Second,
		`0`: 0, `-5`: 0, `0.5`: 0, `"soon"`: 0, `true`: 0, `"2026-01-01T01:00:00Z"`: 0, `1e300`: longest,
	} {
		if got := (fields{"refresh_in": []byte(value)}).seconds("refresh_in"); got != want {
			t.Errorf("%s: got %v, want %v", value, got, want)
		}
	}
}

func TestTheServersClockIsBelievedWithinReason(t *testing.T) {
	at := func(d time.Duration) http.Header {
		return http.Header{"Date": {t0.Add(d).UTC().Format(http.TimeFormat)}}
	}
	stored := at(time.Hour)
	stored.Set("Age", "0")
	for _, tt := range []struct {
		name   string
		header http.Header
		rule   ExpiryRule
		want   time.Duration // ahead of ours
	}{
		{"none", http.Header{}, ExpiryRule{}, 0},
		{"unreadable", http.Header{"Date": {"yesterday"}}, ExpiryRule{}, 0},
		{"ahead", at(time.Hour), ExpiryRule{}, time.Hour},
		{"behind", at(-time.Hour), ExpiryRule{}, -time.Hour},
		{"a day ahead", at(24 * time.Hour), ExpiryRule{}, 24 * time.Hour},
		{"more than a day ahead", at(24*time.Hour + time.Second), ExpiryRule{}, 0},
		{"more than a day behind", at(-24*time.Hour - time.Second), ExpiryRule{}, 0},
		{"a stored answer", stored, ExpiryRule{}, 0},
		{"ignored", at(time.Hour), ExpiryRule{IgnoreDate: true}, 0},
		{"centuries ahead", http.Header{"Date": {"Fri, 31 Dec 9999 23:59:59 GMT"}}, ExpiryRule{}, 0},
	} {
		sent := t0.Add(300 * time.Millisecond) // which a Date cannot tell
		now, skew := tt.rule.reference(tt.header, sent)
		if skew != tt.want {
			t.Errorf("%s: skew %v, want %v", tt.name, skew, tt.want)
		}
		if got := now.Sub(sent).Round(time.Second); got != tt.want {
			t.Errorf("%s: reference %v ahead, want %v", tt.name, got, tt.want)
		}
	}
}

func TestClockSkewIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(300 * time.Millisecond)
		odd := &oddities{}
		c := clientOf(t, "http://server/", Config{Recorder: odd, Transport: overPipe(t, vector{
			date: time.Now().Add(-7 * time.Minute).UTC().Format(http.TimeFormat),
		})})
		if _, err := c.ClientCredentials(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := odd.skew, -7*time.Minute; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestNoNumberOverflows(t *testing.T) {
	for _, format := range []Format{Auto, Seconds, Milliseconds, Unix, UnixMilliseconds, absolute} {
		for _, n := range []float64{math.MaxFloat64, math.MaxInt64, math.MaxInt32, 1e9, 1e11, 1e14, 9.3e9, 1e-300, 0, -1, -math.MaxFloat64} {
			remaining, source, anomaly := format.remaining(quantity{kind: number, number: n}, t0)
			if (source == "") == (anomaly == "") || remaining < 0 || remaining > longest || (remaining > 0) != (source != "") {
				t.Errorf("%s of %g: %v, %q, %q", format, n, remaining, source, anomaly)
			}
		}
	}
}
