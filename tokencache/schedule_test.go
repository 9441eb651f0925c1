package tokencache

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestRefreshIn(t *testing.T) {
	for _, tt := range []struct {
		name        string
		token       Token
		window      Window
		first, last time.Duration // for random 0 and almost 1
	}{
		{"an hour", Token{Lifetime: time.Hour}, DefaultWindow, 30 * time.Minute, 45 * time.Minute},
		{"two seconds", Token{Lifetime: 2 * time.Second}, DefaultWindow, time.Second, 1500 * time.Millisecond},
		{"ten years", Token{Lifetime: 87600 * time.Hour}, DefaultWindow, 43800 * time.Hour, 65700 * time.Hour},
		{"late window leaves a last minute", Token{Lifetime: time.Hour}, Window{0.99, 0.999}, 59 * time.Minute, 59 * time.Minute},
		{"late window, short life, leaves a quarter", Token{Lifetime: time.Minute}, Window{0.9, 0.95}, 45 * time.Second, 45 * time.Second},
		{"the server wants it sooner", Token{Lifetime: time.Hour, RefreshIn: 10 * time.Minute}, DefaultWindow, 10 * time.Minute, 10 * time.Minute},
		{"the server wants it later", Token{Lifetime: time.Hour, RefreshIn: 50 * time.Minute}, DefaultWindow, 30 * time.Minute, 45 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := refreshIn(tt.token, tt.window, 0); got != tt.first {
				t.Errorf("earliest: got %v, want %v", got, tt.first)
			}
			got := refreshIn(tt.token, tt.window, 1-1e-12)
			if slack := tt.last - got; slack < 0 || slack > time.Millisecond {
				t.Errorf("latest: got %v, want %v", got, tt.last)
			}
		})
	}
}

type failure struct {
	sentinel error
	after    time.Duration
}

func (f failure) Error() string             { return fmt.Sprintf("failure %v", f.sentinel) }
func (f failure) Reason() string            { return "test" }
func (f failure) RetryAfter() time.Duration { return f.after }
func (f failure) Unwrap() error             { return f.sentinel }

// closing is a failure that closes a circuit breaker.
type closing struct {
	failure
	rest time.Duration
}

func (c closing) ClosedFor() time.Duration { return c.rest }

func TestRetryIn(t *testing.T) {
	down := errors.New("down")
	for _, tt := range []struct {
		name        string
		err         error
		failures    int
		least, most time.Duration
	}{
		{"first", down, 0, 0, 2 * time.Second},
		{"second", down, 1, 0, 4 * time.Second},
		{"fifth", down, 4, 0, 32 * time.Second},
		{"sixth", down, 5, 0, time.Minute},
		{"after a year", down, 1 << 40, 0, time.Minute},
		{"asked to wait", failure{after: 30 * time.Second}, 0, 30 * time.Second, 32 * time.Second},
		{"asked to wait for days", failure{after: 100 * time.Hour}, 9, 15 * time.Minute, 16 * time.Minute},
		{"refused", failure{sentinel: ErrClientRejected}, 0, time.Minute, 5 * time.Minute},
		{"refused often", failure{sentinel: ErrClientRejected}, 99, time.Minute, 5 * time.Minute},
		{"refused and asked to wait", failure{ErrClientRejected, 10 * time.Minute}, 0, 10 * time.Minute, 10 * time.Minute},
		{"the breaker opens", closing{rest: 30 * time.Second}, 5, 30 * time.Second, time.Minute},
		{"breaker open", failure{ErrNotAsked, 7 * time.Second}, 9, 7 * time.Second, 7 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := retryIn(tt.err, tt.failures, 0); got != tt.least {
				t.Errorf("least: got %v, want %v", got, tt.least)
			}
			got := retryIn(tt.err, tt.failures, 1-1e-12)
			if slack := tt.most - got; slack < 0 || slack > time.Millisecond {
				t.Errorf("most: got %v, want %v", got, tt.most)
			}
		})
	}
}

func TestWindowText(t *testing.T) {
	for text, want := range map[string]Window{"0.60-0.80": {0.6, 0.8}, "0.5-0.5": {0.5, 0.5}} {
		var w Window
		if err := w.UnmarshalText([]byte(text)); err != nil || w != want {
			t.Errorf("%q: got %v, %v", text, w, err)
		}
	}
	for _, bad := range []string{"", "0.5", "0.8-0.5", "0-0.5", "0.5-1", "a-b", "NaN-NaN", "-0.5-0.7", "0.5-0.7x"} {
		if err := new(Window).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestWhatHasPassedOnOneClockHasPassed(t *testing.T) {
	now := instant{wall: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), mono: time.Hour}
	expiry := now.add(10 * time.Minute)
	for _, tt := range []struct {
		name string
		now  instant
		want time.Duration
	}{
		{"both agree", now.add(time.Minute), 9 * time.Minute},
		{"wall clock set an hour ahead, or the machine was suspended", instant{now.wall.Add(time.Hour), now.mono}, -50 * time.Minute},
		{"wall clock set an hour back", instant{now.wall.Add(-time.Hour), now.mono + 11*time.Minute}, -time.Minute},
	} {
		if got := tt.now.until(expiry); got != tt.want {
			t.Errorf("%s: got %v left, want %v", tt.name, got, tt.want)
		}
	}
}
