package tokencache

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestInvalidateReplacesTheTokenOnce(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second, InvalidateInterval: 10 * time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.asked()
		for range 500 {
			c.Invalidate("access-1")
		}
		synctest.Wait()
		wantToken(t, c, "access-2")
		c.Invalidate("access-1") // late news of an old token
		c.Invalidate("")
		time.Sleep(10 * time.Minute)
		wantToken(t, c, "access-2")
		wantAsked(t, s, "client_credentials")
	})
}

func TestUpstreamThatRefusesEveryTokenCausesNoStorm(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		synctest.Wait()
		s.asked()
		for range 599 {
			token, err := c.AccessToken(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.Invalidate(token)
			time.Sleep(100 * time.Millisecond)
		}
		if n := strings.Count(s.asked(), "client_credentials"); n != 6 {
			t.Errorf("got %d token requests in a minute, want 6", n)
		}
		s.change(func() { s.grant = failure{sentinel: ErrClientRejected} })
		for range 600 {
			token, _ := c.AccessToken(t.Context())
			c.Invalidate(token)
			time.Sleep(100 * time.Millisecond)
		}
		if n := strings.Count(s.asked(), "client_credentials"); n > 2 {
			t.Errorf("got %d token requests in a minute with refused credentials, want the slow lane", n)
		}
	})
}

func TestCallersWaitForARefreshThatMayKillTheToken(t *testing.T) {
	s := &server{took: 300 * time.Millisecond}
	run(t, s, Config{Wait: 10 * time.Second, Hold: time.Second, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(30*time.Minute - 200*time.Millisecond)
		start := time.Now()
		wantToken(t, c, "access-2")
		if waited := time.Since(start); waited != 200*time.Millisecond {
			t.Errorf("waited %v, want until the answer was there", waited)
		}
	})
}

func TestFullGrantOnlyNeverHolds(t *testing.T) {
	s := &server{took: 300 * time.Millisecond}
	run(t, s, Config{Wait: time.Second, Hold: time.Second, FullGrantOnly: true, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(30*time.Minute - 200*time.Millisecond)
		wantToken(t, c, "access-1")
		time.Sleep(time.Second)
		wantToken(t, c, "access-2")
		wantAsked(t, s, "client_credentials client_credentials")
	})
}

func TestHoldIsBounded(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: 10 * time.Second, Hold: time.Second, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.took = time.Minute })
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		start := time.Now()
		wantToken(t, c, "access-1")
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("waited %v for a refresh that hangs, want the second allowed", waited)
		}
	})
}

func TestHoldEndsWhenTheRefreshFails(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: 10 * time.Second, Hold: time.Second, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.took, s.refresh = 100*time.Millisecond, errDown })
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		start := time.Now()
		wantToken(t, c, "access-1")
		if waited := time.Since(start); waited != 100*time.Millisecond {
			t.Errorf("waited %v, want until it was known that the token stays", waited)
		}
	})
}

func TestRefusedTokenIsNotGivenOutWhileItIsReplaced(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: 10 * time.Second, InvalidateInterval: 10 * time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.took = 2 * time.Second })
		c.Invalidate("access-1")
		wantToken(t, c, "access-2")

		s.change(func() { s.grant = errDown })
		time.Sleep(10 * time.Second)
		c.Invalidate("access-2")
		start := time.Now()
		wantToken(t, c, "access-2") // no other can be had, so it is for the upstream to say
		if waited := time.Since(start); waited != 2*time.Second {
			t.Errorf("waited %v, want until the renewal had failed", waited)
		}
	})
}

func TestARefusedTokenIsGivenOutOnlyUntilAnotherMayBeHad(t *testing.T) {
	now := instant{wall: time.Now()}
	for forceable, want := range map[instant]time.Duration{now.add(1): 0, now: replaceWait} {
		s := &state{facts: facts{forceable: forceable}}
		s.refused.Store(true)
		if got := s.hold(now); got != want {
			t.Errorf("another may be had in %v: got a wait of %v, want %v", now.until(forceable), got, want)
		}
	}
}

func TestChangedCredentialsAreProvenAtOnce(t *testing.T) {
	s := &server{grant: failure{sentinel: ErrClientRejected}}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		time.Sleep(10 * time.Second) // it will be asked again in one to five minutes
		s.change(func() { s.grant = nil })
		s.asked()
		c.Renew()
		wantToken(t, c, "access-1")
		wantAsked(t, s, "client_credentials")
	})
}

func TestWrongNewCredentialsDoNoHarmWhileThePairLives(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.grant = failure{sentinel: ErrClientRejected} })
		c.Renew()
		synctest.Wait()
		wantAsked(t, s, "client_credentials client_credentials")
		wantToken(t, c, "access-1")
		time.Sleep(10 * time.Minute)
		wantToken(t, c, "access-2") // by the refresh token, which they left alone
		wantAsked(t, s, "refresh_token")
	})
}

func TestAContestedClientIsNamed(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	s, rec := &server{}, &recorder{}
	run(t, s, Config{Wait: time.Second, Log: zap.New(core), Recorder: rec}, func(t *testing.T, c *Cache) {
		for died := 1; died <= 5; died++ {
			token, err := c.AccessToken(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			c.Invalidate(token)
			synctest.Wait()
			if got, want := c.Contested(), died >= 3; got != want {
				t.Errorf("contested after %d tokens: %v, want %v", died, got, want)
			}
		}
		if !slices.Equal(rec.contested, []bool{true}) || logs.FilterMessageSnippet("keep dying before their time").Len() != 1 {
			t.Errorf("recorded: %v, log: %v", rec.contested, logs.All())
		}
		time.Sleep(2 * time.Hour)
		if c.Contested() || !slices.Equal(rec.contested, []bool{true, false}) {
			t.Errorf("after tokens have lived their time: contested: %v, recorded: %v", c.Contested(), rec.contested)
		}
	})
}

func TestARenewalThatFailsKeepsTheRefreshToken(t *testing.T) {
	s := &server{grant: nil}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.grant = errDown })
		c.Invalidate("access-1")
		time.Sleep(3 * time.Second)
		wantAsked(t, s, "client_credentials client_credentials refresh_token")
		wantToken(t, c, "access-2")
	})
}

func TestARefusalDuringTheQuietWaitLeadsToTheFullGrant(t *testing.T) {
	s := &server{}
	quiet := func(ctx context.Context) { <-ctx.Done() } // an upload that does not end
	run(t, s, Config{Wait: time.Second, Hold: time.Second, Quiet: quiet, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(30*time.Minute + time.Second)
		wantAsked(t, s, "client_credentials")
		c.Invalidate("access-1")
		wantToken(t, c, "access-2")
		wantAsked(t, s, "client_credentials")
	})
}

func TestQuietIsWaitedForButNotForLong(t *testing.T) {
	s := &server{}
	quiet := func(ctx context.Context) { <-ctx.Done() }
	run(t, s, Config{Wait: time.Second, Hold: time.Second, Quiet: quiet, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(30*time.Minute + quietPatience - time.Millisecond)
		wantToken(t, c, "access-1")
		time.Sleep(2 * time.Millisecond)
		start := time.Now()
		wantToken(t, c, "access-2")
		if waited := time.Since(start); waited != quietHold-time.Millisecond {
			t.Errorf("callers waited %v for quiet, want the rest of %v", waited, quietHold)
		}
	})
}

func TestQuietIsWaitedForOnlyAQuarterOfWhatIsLeft(t *testing.T) {
	s := &server{life: 4 * time.Second}
	quiet := func(ctx context.Context) { <-ctx.Done() }
	run(t, s, Config{Wait: time.Second, Hold: time.Second, Quiet: quiet, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(2*time.Second + 2*time.Second/4 + quietHold)
		synctest.Wait()
		wantToken(t, c, "access-2")
	})
}

func TestQuietIsNotWaitedForIfNothingCanBeLost(t *testing.T) {
	s := &server{}
	var waited atomic.Int32
	quiet := func(context.Context) { waited.Add(1) }
	run(t, s, Config{Wait: time.Second, Hold: time.Second, Quiet: quiet, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1") // the first
		c.Invalidate("access-1")
		wantToken(t, c, "access-2") // in the place of one that is lost already
		c.Renew()
		synctest.Wait()
		wantToken(t, c, "access-3") // by a full grant, which kills nothing
		s.change(func() { s.refresh = failure{after: 15 * time.Minute} })
		time.Sleep(50 * time.Minute)
		wantAsked(t, s, "client_credentials client_credentials client_credentials refresh_token refresh_token")
		if got := waited.Swap(0); got != 4 {
			t.Errorf("waited %d times for quiet, want twice before each refresh", got)
		}
		s.change(func() { s.refresh, s.noPair = nil, true })
		time.Sleep(11 * time.Minute)
		wantToken(t, c, "access-4") // in the place of one that has expired
		time.Sleep(time.Hour)
		wantToken(t, c, "access-6") // there are no refresh tokens any more
		wantAsked(t, s, "refresh_token client_credentials client_credentials")
		if got := waited.Load(); got != 0 {
			t.Errorf("waited %d times for quiet, want none", got)
		}
	})
}

func TestNobodyWaitsLongForWhatTakesTheRefusedTokensPlace(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Minute, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.took = time.Minute })
		time.Sleep(30 * time.Minute)
		synctest.Wait() // the refresh is under way
		c.Invalidate("access-1")
		start := time.Now()
		wantToken(t, c, "access-1")
		if waited := time.Since(start); waited != replaceWait {
			t.Errorf("waited %v, want %v", waited, replaceWait)
		}
	})
}

func TestReplacementIsWaitedForEvenIfNobodyWaitsForTheFirstToken(t *testing.T) {
	s := &server{took: 100 * time.Millisecond}
	run(t, s, Config{}, func(t *testing.T, c *Cache) {
		if _, err := c.AccessToken(t.Context()); err == nil {
			t.Error("waited for the first token")
		}
		time.Sleep(time.Second)
		wantToken(t, c, "access-1")
		c.Invalidate("access-1")
		wantToken(t, c, "access-2")
	})
}
