package tokencache

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestTheEndOfRunRevokesThePairThatIsHeld(t *testing.T) {
	for outcome, patience := range map[error]time.Duration{nil: 0, errDown: 0, context.DeadlineExceeded: 2 * time.Second} {
		testTheEndRevokes(t, false, outcome, patience)
		testTheEndRevokes(t, true, outcome, patience)
	}
}

func testTheEndRevokes(t *testing.T, fullGrantOnly bool, outcome error, patience time.Duration) {
	var revoked []Token
	core, logs := observer.New(zap.InfoLevel)
	cfg := Config{FullGrantOnly: fullGrantOnly, Wait: time.Second, Log: zap.New(core), Revoke: func(ctx context.Context, pair Token) error {
		revoked = append(revoked, pair)
		if outcome == context.DeadlineExceeded { // the server hangs
			<-ctx.Done()
		}
		return outcome
	}}
	s := &server{}
	synctest.Test(t, func(t *testing.T) {
		s.life, cfg.Grants = time.Hour, s
		c := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(90*time.Minute, cancel) // after the first refresh
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(c.origin) - 90*time.Minute; took != patience {
			t.Errorf("%v: it took %v to end, want %v", outcome, took, patience)
		}
	})
	if len(revoked) != 1 || revoked[0].Access.Reveal() != fmt.Sprint("access-", s.issued) || revoked[0].Refresh.Reveal() != fmt.Sprint("refresh-", s.issued) {
		t.Errorf("revoked %d pairs, want the one pair that is held", len(revoked))
	}
	want := "the tokens are revoked"
	if outcome != nil {
		want = "the tokens could not be revoked, and stay good until they expire"
	}
	if logs.FilterMessage(want).Len() != 1 {
		t.Errorf("%v: the log says %v", outcome, logs.All())
	}
}

func TestAPairThatComesWithTheEndOfRunIsRevoked(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	revoked := ""
	c := New(Config{
		Grants: grantsFunc(func() (Token, error) {
			end()
			return Token{Access: NewSecret("late"), Issued: time.Now(), Expiry: time.Now().Add(time.Hour)}, nil
		}),
		Revoke: func(_ context.Context, pair Token) error {
			revoked = pair.Access.Reveal()
			return nil
		},
	})
	if err := c.Run(ctx); err != nil || revoked != "late" {
		t.Errorf("revoked %q, %v, want the pair that has just come", revoked, err)
	}
}

func TestWithoutATokenNothingIsRevoked(t *testing.T) {
	cfg := Config{Revoke: func(context.Context, Token) error {
		t.Error("revoked nothing")
		return nil
	}}
	run(t, &server{grant: errDown}, cfg, func(t *testing.T, c *Cache) { synctest.Wait() })
}
