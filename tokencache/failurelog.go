package tokencache

import (
	"errors"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A failureLog remembers what was logged last, so that a failure that goes on
// makes one line a minute, and another kind of failure makes one at once.
type failureLog struct {
	reason string
	at     instant
}

func (c *Cache) logFailure(s facts, grant string, wait time.Duration) {
	now, why := c.now(), reason(s.err)
	if why == c.logged.reason && now.mono-c.logged.at.mono < repeatLog {
		return
	}
	c.logged = failureLog{why, now}
	level := zapcore.WarnLevel
	if errors.Is(s.err, ErrClientRejected) {
		level = zapcore.ErrorLevel // somebody has to act
	}
	c.cfg.Log.Log(level, "no new access token",
		zap.String("grant_type", grant), zap.String("reason", why), zap.Error(s.err),
		zap.Duration("next_try_in", wait), zap.Duration("token_valid_for", max(now.until(s.goodUntil), 0)))
}
