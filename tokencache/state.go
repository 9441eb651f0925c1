package tokencache

import (
	"sync/atomic"
	"time"
)

// state is all that is known at one time. It is replaced, never changed, but
// for the one thing that others than Run find out.
type state struct {
	facts
	refused    atomic.Bool   // the upstream refused access
	superseded chan struct{} // closed when another state takes its place
}

type facts struct {
	token      Token
	access     string  // token.Access, revealed once; "": no token
	goodUntil  instant // when access stops being handed out
	heldUntil  instant // until then callers wait for what takes access's place
	next       instant // when the server is asked next
	forceable  instant // when Invalidate may bring that forward
	err        error   // why the last cycle failed; nil: it did not
	failures   int     // cycles failed in a row
	refreshTry int     // of those, with the refresh token now held
	diedEarly  int     // tokens in a row that were refused before their refresh was due
}

func (s *state) valid(now instant) bool { return s.access != "" && now.until(s.goodUntil) > 0 }

// contestedAfter is how many tokens in a row must die early to name a rival:
// one or two may have been revoked.
const contestedAfter = 3

func (f *facts) contested() bool { return f.diedEarly >= contestedAfter }

// due is when the server is to be asked next. A refused token brings that
// forward, but not while the server itself is in trouble.
func (s *state) due() instant {
	if s.refused.Load() && s.err == nil {
		return s.next.earlier(s.forceable)
	}
	return s.next
}

// hold is how long a caller should wait for the token that will take the
// place of a valid one. Once that was refused there is no use in giving it
// out, so that the wait for a refresh under way may become longer.
func (s *state) hold(now instant) time.Duration {
	if s.refused.Load() && s.err == nil && now.until(s.forceable) <= 0 {
		return replaceWait
	}
	if s.heldUntil.mono == 0 {
		return 0
	}
	return now.until(s.heldUntil)
}

// refreshable reports whether the refresh token is worth sending: it is if it
// is there, has not expired, and has not failed twice.
func (f *facts) refreshable(now instant) bool {
	expiry := f.token.RefreshExpiry
	return !f.token.Refresh.IsZero() && f.refreshTry < 2 && (expiry.IsZero() || now.wall.Before(expiry))
}
