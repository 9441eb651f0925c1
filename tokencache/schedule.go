package tokencache

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

const (
	// A refresh leaves at least this long, or a quarter of a shorter life,
	// for further tries before the token ends.
	lastCall = time.Minute

	// Retries draw from U(0, min(maxBackoff, minBackoff·2ⁿ)), "full jitter":
	// 10,000 sidecars cut off together come back as a trickle.
	minBackoff = 2 * time.Second
	maxBackoff = time.Minute
	// A server that asks to be left alone for longer is not believed.
	maxRetryAfter = 15 * time.Minute

	// A refusal does not pass by itself: these bound the wait for somebody to
	// mend the credentials, at a rate that provokes no lock-out.
	minRejectedWait = time.Minute
	maxRejectedWait = 5 * time.Minute
)

// A Window is the part of a token's lifetime in which its refresh takes
// place, each token's at a random point of it: sidecars that started together
// drift apart instead of returning together for ever.
type Window struct{ From, To float64 }

// DefaultWindow leaves a quarter of the lifetime to ride out an outage in.
var DefaultWindow = Window{0.50, 0.75}

// UnmarshalText parses "0.50-0.75".
func (w *Window) UnmarshalText(text []byte) error {
	from, to, _ := strings.Cut(string(text), "-")
	var errFrom, errTo error
	w.From, errFrom = strconv.ParseFloat(from, 64)
	w.To, errTo = strconv.ParseFloat(to, 64)
	if errFrom != nil || errTo != nil || !(0 < w.From && w.From <= w.To && w.To < 1) { // false for NaN
		return errors.New("want two fractions of the lifetime such as 0.50-0.75, above 0 and below 1")
	}
	return nil
}

// refreshIn is how long after its issue a token is to be replaced. random is
// uniform in [0,1).
func refreshIn(t Token, w Window, random float64) time.Duration {
	life := t.Lifetime
	at := fraction(life, w.From+random*(w.To-w.From))
	at = min(at, life-min(lastCall, life/4))
	if t.RefreshIn > 0 {
		at = min(at, t.RefreshIn)
	}
	return at
}

// retryIn is how long to wait after the failure err, which followed that many
// failures in a row. random is uniform in [0,1).
func retryIn(err error, failures int, random float64) time.Duration {
	asked := min(retryAfter(err), maxRetryAfter)
	if errors.Is(err, ErrNotAsked) {
		return asked
	}
	if errors.Is(err, ErrClientRejected) {
		return max(asked, minRejectedWait+fraction(maxRejectedWait-minRejectedWait, random))
	}
	ceiling := maxBackoff
	if failures < 5 { // 2 s · 2⁵ is past the ceiling
		ceiling = min(ceiling, minBackoff<<failures)
	}
	return max(asked+fraction(ceiling, random), closedFor(err))
}

func fraction(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

func retryAfter(err error) time.Duration {
	if f, ok := errors.AsType[Failure](err); ok {
		return f.RetryAfter()
	}
	return 0
}

// closedFor is how long a further request would only meet a closed door of our
// own, which an error may tell by a method.
func closedFor(err error) time.Duration {
	if c, ok := errors.AsType[interface {
		error
		ClosedFor() time.Duration
	}](err); ok {
		return c.ClosedFor()
	}
	return 0
}

func reason(err error) string {
	if f, ok := errors.AsType[Failure](err); ok {
		return f.Reason()
	}
	return "other"
}
