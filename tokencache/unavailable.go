package tokencache

import (
	"fmt"
	"time"
)

// unavailable says why there is no token that is valid, or none that is valid
// for long. It implements Failure.
type unavailable struct {
	left    time.Duration // of the token held; 0: none is valid
	cause   error         // nil: the first answer has not come yet
	retryIn time.Duration
}

func (c *Cache) unavailable(s *state) error {
	now := c.now()
	u := &unavailable{cause: s.err, retryIn: max(now.until(s.next), 0)}
	if s.valid(now) {
		u.left = now.until(s.goodUntil)
	}
	return u
}

func (u *unavailable) Error() string {
	state := "no valid access token"
	if u.left > 0 {
		state = fmt.Sprintf("the access token expires in %s", u.left.Round(time.Second))
	}
	if u.cause == nil {
		return state + ": the token endpoint is being asked"
	}
	return fmt.Sprintf("%s: %v; next try in %s", state, u.cause, u.retryIn.Round(time.Second))
}

func (u *unavailable) Unwrap() error             { return u.cause }
func (u *unavailable) RetryAfter() time.Duration { return u.retryIn }

func (u *unavailable) Reason() string {
	if u.cause == nil {
		return "pending"
	}
	return reason(u.cause)
}
