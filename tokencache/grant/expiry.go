package grant

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// A Format is the meaning of the number in expires_in.
type Format string

// The formats. Auto tells seconds from Unix times by their size, which no
// honest answer leaves in doubt; milliseconds to live it cannot tell from
// seconds to live, so those must be named.
const (
	Auto             Format = "auto"
	Seconds          Format = "seconds"      // to live, as RFC 6749 section 5.1 has it
	Milliseconds     Format = "milliseconds" // to live
	Unix             Format = "unix"         // the time of expiry, in seconds
	UnixMilliseconds Format = "unix_ms"      // the time of expiry, in milliseconds
	Ignore           Format = "ignore"       // the member is not read
)

// UnmarshalText parses one of the formats.
func (f *Format) UnmarshalText(text []byte) error {
	choices := map[string]Format{}
	for _, c := range []Format{Auto, Seconds, Milliseconds, Unix, UnixMilliseconds, Ignore} {
		choices[string(c)] = c
	}
	choice, err := named(choices, string(text))
	*f = choice
	return err
}

// defaultLifetime is assumed of a token whose answer tells nothing credible.
const defaultLifetime = 10 * time.Minute

const (
	// Unix seconds passed unixFrom in 2001; no token lives for that many
	// seconds. From milliFrom on a number counts milliseconds, up to tooMuch.
	unixFrom  = 1e9
	milliFrom = 1e11
	tooMuch   = 1e14

	// A server that answers nonsense is not asked oftener than this allows.
	leastAfterAnomaly = time.Minute
	// A Date further off than this is not a clock.
	credibleSkew = 24 * time.Hour
)

// The kinds of anomaly.
const (
	anomalyUnreadable    = "unreadable"
	anomalyNotPositive   = "not_positive"
	anomalyImplausible   = "implausible"
	anomalyPast          = "past"
	anomalyContradiction = "contradiction" // of Format
)

// AnomalyKinds lists every kind that a [Recorder] may be told.
var AnomalyKinds = []string{anomalyUnreadable, anomalyNotPositive, anomalyImplausible, anomalyPast, anomalyContradiction}

// An ExpiryRule turns what an answer says about a token's expiry into the
// time it has left. Every source may shorten that and none prolong it, and no
// answer makes a token endless, or dead on arrival.
type ExpiryRule struct {
	Format Format // zero: Auto
	// Default is assumed where the answer tells nothing credible; 0: defaultLifetime.
	Default time.Duration
	// Max bounds the lifetime that refreshes are planned in, not the use of a
	// token when no other can be had; 0: no bound.
	Max time.Duration
	// IgnoreJWT leaves the exp claim of a JWT access token unread.
	IgnoreJWT bool
	// IgnoreDate measures absolute times by our clock, not by the Date header.
	IgnoreDate bool
}

// lifetime is what an ExpiryRule makes of an answer.
type lifetime struct {
	remaining time.Duration // whole seconds
	source    string
	anomalies []string
}

// reference is the "now" that absolute times are measured from: the server's
// own clock where it shows a credible one, so that a wrong clock on our side
// does no harm. skew is how far it is ahead of ours.
func (r ExpiryRule) reference(header http.Header, sent time.Time) (now time.Time, skew time.Duration) {
	local := sent.Round(0)
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil || header.Get("Age") != "" || r.IgnoreDate { // RFC 9111 section 5.1: Age marks a stored answer
		return local, 0
	}
	if skew = date.Sub(local.Truncate(time.Second)); skew.Abs() > credibleSkew {
		return local, 0
	}
	return date, skew
}

// lifetime finds how long the token of f lives, counted from now.
func (r ExpiryRule) lifetime(f fields, now time.Time) lifetime {
	var best lifetime
	consider := func(remaining time.Duration, source, anomaly string) {
		switch {
		case anomaly != "":
			best.anomalies = append(best.anomalies, anomaly)
		case source != "" && (best.source == "" || remaining < best.remaining):
			best.remaining, best.source = remaining, source
		}
	}
	if r.Format != Ignore {
		consider(r.Format.remaining(f.first("expires_in", "expiresIn", "expires"), now))
	}
	for _, name := range []string{"expires_at", "expires_on", "expiration"} {
		remaining, source, anomaly := absolute.remaining(f.first(name), now)
		consider(remaining, renamed(source, name), anomaly)
	}
	if !r.IgnoreJWT {
		remaining, source, anomaly := Unix.remaining(jwtExpiry(f.text("access_token")), now)
		consider(remaining, renamed(source, "jwt_exp"), anomaly)
	}
	if best.source == "" {
		best.remaining, best.source = cmp.Or(r.Default, defaultLifetime), "default"
		if len(best.anomalies) > 0 {
			best.remaining = max(best.remaining, leastAfterAnomaly)
		}
	}
	return best
}

// planned is the part of a lifetime that refreshes are planned in.
func (r ExpiryRule) planned(remaining time.Duration) time.Duration {
	if r.Max > 0 {
		return min(remaining, r.Max)
	}
	return remaining
}

// refreshLifetime is how long the refresh token lives; 0: not told.
func (r ExpiryRule) refreshLifetime(f fields, now time.Time) time.Duration {
	remaining, _, _ := r.Format.remaining(f.first("refresh_expires_in", "refresh_token_expires_in"), now)
	return remaining
}

// absolute is the format of members that hold a time of expiry, never a span.
const absolute Format = "absolute"

// remaining reads q by the format. An anomaly comes with no source.
func (format Format) remaining(q quantity, now time.Time) (remaining time.Duration, source, anomaly string) {
	switch q.kind {
	case absent:
		return 0, "", ""
	case unreadable:
		return 0, "", anomalyUnreadable
	case instant:
		return checked(q.time.Sub(now).Seconds(), "rfc3339", anomalyPast)
	case duration:
		return checked(q.number, "duration", anomalyNotPositive)
	}
	v := q.number
	unix := func(scale float64) float64 { return v/scale - float64(now.UnixMilli())/1e3 }
	isUnix, isMilli := v >= unixFrom && v < milliFrom, v >= milliFrom && v < tooMuch
	switch format {
	case Seconds:
		return checked(v, string(Seconds), anomalyNotPositive)
	case Milliseconds:
		return checked(v/1e3, string(Milliseconds), anomalyNotPositive)
	}
	switch {
	case v <= 0:
		return 0, "", anomalyNotPositive
	case isUnix && format != UnixMilliseconds:
		return checked(unix(1), string(Unix), anomalyPast)
	case isMilli && format != Unix:
		return checked(unix(1e3), string(UnixMilliseconds), anomalyPast)
	case format == Unix || format == UnixMilliseconds || format == absolute:
		return 0, "", anomalyContradiction
	case v < unixFrom:
		return checked(v, string(Seconds), anomalyNotPositive)
	}
	return 0, "", anomalyImplausible
}

// checked passes on a span of at least a second; anything less is the anomaly.
func checked(s float64, source, otherwise string) (time.Duration, string, string) {
	if s < 1 {
		return 0, "", otherwise
	}
	return seconds(s), source, ""
}

func renamed(source, name string) string {
	if source == "" {
		return ""
	}
	return name
}

// first returns the first of the members that is there.
func (f fields) first(names ...string) quantity {
	for _, name := range names {
		if q := parseQuantity(f[name]); q.kind != absent {
			return q
		}
	}
	return quantity{}
}

// jwtExpiry reads the exp claim (RFC 7519 section 4.1.4) of a signed JWT. A
// client should not look into access tokens (RFC 9068 section 6): what is
// found here may only shorten the life that the answer states.
func jwtExpiry(token string) quantity {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return quantity{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return quantity{}
	}
	var claims fields
	if json.Unmarshal(payload, &claims) != nil {
		return quantity{}
	}
	return parseQuantity(claims["exp"])
}
