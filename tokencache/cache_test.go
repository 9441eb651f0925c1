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
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
)

// server is an authorization server within the process. Its answers can be
// changed while it runs.
type server struct {
	mu       sync.Mutex
	life     time.Duration
	took     time.Duration // every request
	noPair   bool          // issue no refresh tokens
	grant    error         // what client_credentials fails with
	refresh  error         // what refresh_token fails with
	same     bool          // answer with the token issued last
	issued   int
	requests []string
	inFlight int
}

func (s *server) ClientCredentials(ctx context.Context) (Token, error) {
	return s.answer(ctx, "client_credentials", func() error { return s.grant })
}

func (s *server) RefreshToken(ctx context.Context, _ Secret) (Token, error) {
	return s.answer(ctx, "refresh_token", func() error { return s.refresh })
}

func (s *server) answer(ctx context.Context, grant string, failure func() error) (Token, error) {
	s.change(func() {
		s.requests = append(s.requests, grant)
		if s.inFlight++; s.inFlight > 1 {
			panic("two requests in flight")
		}
	})
	defer s.change(func() { s.inFlight-- })
	sent := time.Now()
	select {
	case <-time.After(s.took):
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := failure(); err != nil {
		return Token{}, err
	}
	if !s.same {
		s.issued++
	}
	token := Token{Access: NewSecret(fmt.Sprintf("access-%d", s.issued)), Issued: sent, Expiry: sent.Add(s.life)}
	if !s.noPair {
		token.Refresh = NewSecret(fmt.Sprintf("refresh-%d", s.issued))
	}
	return token, nil
}

func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// asked returns the requests since it was last called.
func (s *server) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.requests = nil }()
	return strings.Join(s.requests, " ")
}

// run starts a cache before the server, in a bubble of fake time.
func run(t *testing.T, s *server, cfg Config, test func(t *testing.T, c *Cache)) {
	synctest.Test(t, func(t *testing.T) {
		if s.life == 0 {
			s.life = time.Hour
		}
		cfg.Grants = s
		cfg.Log = printed(t, cfg.Log)
		c := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		test(t, c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after its context was done", err)
		}
	})
}

// printed has the test print as well what is logged by l, if that is not nil.
func printed(t *testing.T, l *zap.Logger) *zap.Logger {
	core := zaptest.NewLogger(t).Core()
	if l != nil {
		core = zapcore.NewTee(core, l.Core())
	}
	return zap.New(core)
}

func wantToken(t *testing.T, c *Cache, want string) {
	t.Helper()
	if got, err := c.AccessToken(t.Context()); got != want || err != nil {
		t.Errorf("AccessToken: got %q, %v, want %q", got, err, want)
	}
}

func wantAsked(t *testing.T, s *server, want string) {
	t.Helper()
	if got := s.asked(); got != want {
		t.Errorf("requests to the server: got %q, want %q", got, want)
	}
}

var errDown = errors.New("down")

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

type recorder struct {
	mu           sync.Mutex
	results      map[string]int
	expiry, next time.Time
	failures     int
	contested    []bool // each change
}

func (r *recorder) TokenRefreshed(grantType, result, reason string, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.results == nil {
		r.results = map[string]int{}
	}
	r.results[grantType+" "+result+" "+reason]++
}

func (r *recorder) TokenScheduled(expiry, next time.Time, failures int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expiry, r.next, r.failures = expiry, next, failures
}

func (r *recorder) TokenContested(contested bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contested = append(r.contested, contested)
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
