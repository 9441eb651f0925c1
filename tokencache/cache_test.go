package tokencache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestTokenIsRefreshedLongBeforeItExpires(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		wantAsked(t, s, "client_credentials")
		time.Sleep(29 * time.Minute)
		wantAsked(t, s, "")
		time.Sleep(17 * time.Minute)
		wantAsked(t, s, "refresh_token")
		wantToken(t, c, "access-2")
	})
}

func TestServerThatIssuesNoRefreshToken(t *testing.T) {
	s := &server{noPair: true}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		time.Sleep(46 * time.Minute)
		wantToken(t, c, "access-2")
		wantAsked(t, s, "client_credentials client_credentials")
	})
}

func TestRefusedRefreshLeadsToTheFullGrantAtOnce(t *testing.T) {
	for _, sentinel := range []error{ErrRefreshTokenRejected, ErrOutcomeUnknown} {
		t.Run(sentinel.Error(), func(t *testing.T) {
			s := &server{refresh: failure{sentinel: sentinel}}
			run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
				wantToken(t, c, "access-1")
				time.Sleep(46 * time.Minute)
				wantToken(t, c, "access-2")
				wantAsked(t, s, "client_credentials refresh_token client_credentials")
			})
		})
	}
}

func TestRefreshTokenIsTriedTwiceThenInFull(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.refresh = errDown })
		time.Sleep(50 * time.Minute)
		wantToken(t, c, "access-2")
		wantAsked(t, s, "client_credentials refresh_token refresh_token client_credentials")
	})
}

func TestBusyServerKeepsTheRefreshToken(t *testing.T) {
	s := &server{}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		wantToken(t, c, "access-1")
		s.change(func() { s.refresh = failure{after: 4 * time.Minute} })
		time.Sleep(58 * time.Minute)
		asked := s.asked()
		if n := strings.Count(asked, "refresh_token"); n < 3 || strings.Count(asked, "client_credentials") != 1 {
			t.Errorf("got %q, want the refresh token alone, again and again", asked)
		}
	})
}

func TestExpiredRefreshTokenIsNotSent(t *testing.T) {
	now := instant{wall: time.Now()}
	s := &state{facts: facts{token: Token{Refresh: NewSecret("r"), RefreshExpiry: now.wall}}}
	if s.refreshable(now) {
		t.Error("a refresh token was to be sent after its expiry")
	}
	if s.token.RefreshExpiry = now.wall.Add(1); !s.refreshable(now) {
		t.Error("a refresh token was given up before its expiry")
	}
}

func TestOutageIsNotFeltWhileTheTokenLives(t *testing.T) {
	s := &server{}
	run(t, s, Config{Leeway: time.Second}, func(t *testing.T, c *Cache) {
		synctest.Wait()
		s.change(func() { s.refresh, s.grant = errDown, errDown })
		time.Sleep(time.Hour - time.Second - 1)
		wantToken(t, c, "access-1") // to its last second
		time.Sleep(time.Nanosecond)
		if token, err := c.AccessToken(t.Context()); token != "" || !errors.Is(err, errDown) {
			t.Errorf("after expiry: got %q, %v, want the reason of the outage", token, err)
		}
		s.asked()
		s.change(func() { s.refresh, s.grant = nil, nil })
		time.Sleep(maxBackoff)
		wantToken(t, c, "access-2") // within one step of back-off
		wantAsked(t, s, "client_credentials")
	})
}

func TestThousandCallersOnAColdCacheCauseOneRequest(t *testing.T) {
	s := &server{took: 2 * time.Second}
	run(t, s, Config{Wait: 10 * time.Second}, func(t *testing.T, c *Cache) {
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { wantToken(t, c, "access-1") })
		}
		wg.Wait()
		wantAsked(t, s, "client_credentials")
	})
}

func TestWaitersShareAFailure(t *testing.T) {
	s := &server{took: time.Second, grant: failure{sentinel: ErrClientRejected}}
	run(t, s, Config{Wait: 10 * time.Second}, func(t *testing.T, c *Cache) {
		start := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_, err := c.AccessToken(t.Context())
				if !errors.Is(err, ErrClientRejected) {
					t.Errorf("got %v, want the refusal", err)
				}
				if after := err.(Failure).RetryAfter(); after < minRejectedWait || after > maxRejectedWait {
					t.Errorf("told to come back after %v", after)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("callers waited %v after hope was gone", took-time.Second)
		}
		wantAsked(t, s, "client_credentials")
	})
}

func TestWaitEndsWithTheCallersPatience(t *testing.T) {
	s := &server{took: time.Minute}
	run(t, s, Config{Wait: 10 * time.Second}, func(t *testing.T, c *Cache) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.AccessToken(ctx)
		if err == nil || err.(Failure).Reason() != "pending" || time.Since(start) != 3*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if _, err = c.AccessToken(t.Context()); err == nil || time.Since(start) != 13*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestUnchangedTokenCausesNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(time.Hour)
		requests := 0
		c := New(Config{MinInterval: time.Second, Grants: grantsFunc(func() (Token, error) {
			requests++
			now := time.Now()
			if now.After(end) {
				return Token{Access: NewSecret("second"), Issued: now, Expiry: now.Add(time.Hour)}, nil
			}
			return Token{Access: NewSecret("first"), Issued: now, Expiry: end}, nil
		})})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+10*time.Second)
		defer cancel()
		c.Run(ctx)
		wantToken(t, c, "second")
		if requests > 25 {
			t.Errorf("got %d requests for a token that the server would not renew", requests)
		}
	})
}

type grantsFunc func() (Token, error)

func (f grantsFunc) ClientCredentials(context.Context) (Token, error) { return f() }

func (f grantsFunc) RefreshToken(context.Context, Secret) (Token, error) { return f() }

func TestReadySaysWhyNot(t *testing.T) {
	s := &server{took: time.Second}
	run(t, s, Config{}, func(t *testing.T, c *Cache) {
		if err := c.Ready(); err == nil || !strings.Contains(err.Error(), "is being asked") {
			t.Errorf("before the first token: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := c.Ready(); err != nil {
			t.Errorf("with a token: %v", err)
		}
		s.change(func() { s.refresh, s.grant = errDown, errDown })
		time.Sleep(59*time.Minute + 30*time.Second)
		if err := c.Ready(); err == nil || !strings.Contains(err.Error(), "expires in") || !errors.Is(err, errDown) {
			t.Errorf("just before the end: %v", err)
		}
		time.Sleep(time.Minute)
		if err := c.Ready(); err == nil || !strings.Contains(err.Error(), "no valid access token: down; next try in") {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestReadinessEndsBeforeTheToken(t *testing.T) {
	for life, left := range map[time.Duration]time.Duration{time.Hour: time.Minute, 2 * time.Minute: 12 * time.Second} {
		s := &server{life: life}
		run(t, s, Config{}, func(t *testing.T, c *Cache) {
			synctest.Wait()
			s.change(func() { s.refresh, s.grant = errDown, errDown })
			time.Sleep(life - left)
			if err := c.Ready(); err != nil {
				t.Errorf("a life of %v, %v of it left: %v", life, left, err)
			}
			time.Sleep(time.Nanosecond)
			if c.Ready() == nil {
				t.Errorf("a life of %v, less than %v of it left: ready", life, left)
			}
		})
	}
}

func TestTokensThatLiveShorterThanTheLeastIntervalAreReplacedInTime(t *testing.T) {
	s := &server{life: 4 * time.Second}
	run(t, s, Config{MinInterval: 10 * time.Second}, func(t *testing.T, c *Cache) {
		for range 600 {
			synctest.Wait()
			if _, err := c.AccessToken(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

func TestATokenIsGivenUpBeforeItExpiresByNoMoreThanATenthOfItsLife(t *testing.T) {
	for life, leeway := range map[time.Duration]time.Duration{time.Hour: time.Second, 5 * time.Second: 500 * time.Millisecond} {
		s := &server{life: life}
		run(t, s, Config{Leeway: time.Second}, func(t *testing.T, c *Cache) {
			synctest.Wait()
			s.change(func() { s.refresh, s.grant = errDown, errDown })
			time.Sleep(life - leeway - 1)
			wantToken(t, c, "access-1")
			time.Sleep(time.Nanosecond)
			if token, err := c.AccessToken(t.Context()); err == nil {
				t.Errorf("a life of %v: got %q %v before its end", life, token, leeway)
			}
		})
	}
}

func TestBreakerCountsAsNoFailure(t *testing.T) {
	s := &server{grant: failure{ErrNotAsked, 30 * time.Second}}
	rec := &recorder{}
	run(t, s, Config{Wait: time.Minute, Recorder: rec}, func(t *testing.T, c *Cache) {
		synctest.Wait()
		s.change(func() { s.grant = nil })
		start := time.Now()
		wantToken(t, c, "access-1")
		if waited := time.Since(start); waited != 30*time.Second {
			t.Errorf("asked again after %v, want as soon as the breaker lets it", waited)
		}
		rec.mu.Lock()
		defer rec.mu.Unlock()
		if rec.failures != 0 || rec.results["client_credentials success "] != 1 || len(rec.results) != 1 {
			t.Errorf("recorded %+v", rec)
		}
	})
}

func TestRecorderSeesEveryRequest(t *testing.T) {
	s := &server{}
	rec := &recorder{}
	run(t, s, Config{Recorder: rec, Window: Window{0.5, 0.5}}, func(t *testing.T, c *Cache) {
		start := time.Now()
		synctest.Wait()
		rec.mu.Lock()
		if !rec.expiry.Equal(start.Add(time.Hour)) || !rec.next.Equal(start.Add(30*time.Minute)) {
			t.Errorf("expiry %v, next %v", rec.expiry, rec.next)
		}
		rec.mu.Unlock()
		s.change(func() { s.same = true })
		time.Sleep(31 * time.Minute)
		s.change(func() {
			s.refresh = failure{sentinel: ErrRefreshTokenRejected}
			s.grant = failure{}
		})
		time.Sleep(31 * time.Minute)
		rec.mu.Lock()
		defer rec.mu.Unlock()
		for _, want := range []string{
			"client_credentials success ", "refresh_token unchanged ", "refresh_token rejected test", "client_credentials error test",
		} {
			if rec.results[want] == 0 {
				t.Errorf("%q was not recorded; got %v", want, rec.results)
			}
		}
		if rec.failures == 0 {
			t.Error("no failures in a row were reported")
		}
	})
}

func TestLogTellsEachChangeOnce(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	s := &server{}
	run(t, s, Config{Log: zap.New(core)}, func(t *testing.T, c *Cache) {
		synctest.Wait()
		s.change(func() { s.refresh, s.grant = errDown, errDown })
		time.Sleep(2 * time.Hour)
		failures := logs.FilterMessage("no new access token").Len()
		asked := len(strings.Fields(s.asked())) - 1
		if failures < 2 || failures > 75 || failures > asked {
			t.Errorf("got %d lines for %d failures in two hours", failures, asked)
		}
		s.change(func() { s.refresh, s.grant = nil, nil })
		time.Sleep(2 * time.Minute)
		if n := logs.FilterMessage("access token acquired").Len(); n != 2 {
			t.Errorf("got %d lines for 2 tokens", n)
		}
		for _, entry := range logs.All() {
			if strings.Contains(fmt.Sprint(entry), "access-") || strings.Contains(fmt.Sprint(entry), "refresh-") {
				t.Errorf("a token was logged: %v", entry)
			}
		}
	})
}

func TestNinetyDaysOfAThirtyDayToken(t *testing.T) {
	s := &server{life: 30 * 24 * time.Hour}
	run(t, s, Config{Wait: time.Second}, func(t *testing.T, c *Cache) {
		for range 90 * 24 {
			if _, err := c.AccessToken(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.Ready(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		asked := s.asked()
		if full, refreshes := strings.Count(asked, "client_credentials"), strings.Count(asked, "refresh_token"); full != 1 || refreshes < 4 || refreshes > 6 {
			t.Errorf("got %d full grants and %d refreshes, want 1 and 90/(15 to 22.5)", full, refreshes)
		}
	})
}

func TestShutdownDuringARequest(t *testing.T) {
	s := &server{took: time.Hour}
	run(t, s, Config{}, func(t *testing.T, c *Cache) {
		synctest.Wait() // run cancels while the request is in flight, and Run must return
	})
}

func BenchmarkAccessToken(b *testing.B) {
	s := &server{life: time.Hour}
	c := New(Config{Grants: s, Wait: time.Minute})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go c.Run(ctx)
	if _, err := c.AccessToken(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.AccessToken(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
