package tokencache

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// jumpy starts a cache whose wall clock can be set ahead.
func jumpy(t *testing.T, s *server, test func(t *testing.T, c *Cache, setAhead func(time.Duration))) {
	var ahead atomic.Int64
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Grants: s, Wait: time.Second, MinInterval: time.Minute})
		c.now = func() instant {
			now := instantOf(time.Now(), c.origin)
			now.wall = now.wall.Add(time.Duration(ahead.Load()))
			return now
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx)
		wantToken(t, c, "access-1")
		wantAsked(t, s, "client_credentials")
		test(t, c, func(d time.Duration) { ahead.Store(int64(d)) })
	})
}

func TestLoopNoticesThatTheWallClockJumped(t *testing.T) {
	s := &server{life: time.Hour}
	jumpy(t, s, func(t *testing.T, c *Cache, setAhead func(time.Duration)) {
		setAhead(2 * time.Hour)
		time.Sleep(recheck + 1) // no request comes to tell the loop
		wantAsked(t, s, "refresh_token")
	})
}

func TestRequestTellsTheLoopThatTheWallClockJumped(t *testing.T) {
	s := &server{life: time.Hour}
	jumpy(t, s, func(t *testing.T, c *Cache, setAhead func(time.Duration)) {
		setAhead(2 * time.Hour)
		_, _ = c.AccessToken(t.Context())
		wantAsked(t, s, "refresh_token")
	})
}

func TestWallClockSetBackChangesNothing(t *testing.T) {
	s := &server{life: time.Hour}
	jumpy(t, s, func(t *testing.T, c *Cache, setAhead func(time.Duration)) {
		setAhead(-time.Hour)
		time.Sleep(46 * time.Minute)
		wantAsked(t, s, "refresh_token")
		wantToken(t, c, "access-2")
	})
}

func TestAClockSetBackDoesNotSilenceTheLog(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	c := New(Config{Grants: &server{}, Log: zap.New(core)})
	now := c.now()
	c.now = func() instant { return now }
	for range 10 {
		c.logFailure(facts{err: errDown}, "client_credentials", time.Second)
		now = instant{wall: now.wall.Add(-time.Hour), mono: now.mono + time.Minute}
	}
	if logs.Len() != 10 {
		t.Errorf("got %d lines in ten minutes, want 10", logs.Len())
	}
}
