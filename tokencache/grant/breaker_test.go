package grant

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// behindBreaker is a client of a server within a bubble, with a breaker
// between them, and what its onChange was told.
type behindBreaker struct {
	tokencache.Grants
	*granttest.Server
	client *Client
	told   []bool
}

func inBubble(t *testing.T, test func(t *testing.T, b *behindBreaker)) {
	synctest.Test(t, func(t *testing.T) {
		b := &behindBreaker{Server: &granttest.Server{}}
		b.client = clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, b.Server)})
		b.Grants = WithBreaker(b.client, func(open bool) { b.told = append(b.told, open) })
		test(t, b)
	})
}

// ask makes n requests that all meet the fault, and returns the last error.
func (b *behindBreaker) ask(t *testing.T, n int, grantType string, fault granttest.Fault) (err error) {
	t.Helper()
	b.Always(fault)
	for range n {
		_, err = ask(t.Context(), b, grantType)
	}
	return err
}

func (b *behindBreaker) wantRequests(t *testing.T, want int) {
	t.Helper()
	if got := b.Stats().Requests; got != want {
		t.Errorf("the server saw %d requests, want %d", got, want)
	}
}

func (b *behindBreaker) wantTold(t *testing.T, want ...bool) {
	t.Helper()
	if got := fmt.Sprint(b.told); got != fmt.Sprint(want) {
		t.Errorf("onChange was told %s, want %v", got, want)
	}
}

func notAsked(retryAfter time.Duration) failure {
	return failure{tokencache.ErrNotAsked, "breaker_open", retryAfter}
}

func TestTheBreakerOpensAfterFiveFailuresInARow(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"500": granttest.Empty(500), "503": granttest.Unavailable(""), "a lost answer": granttest.LoseAnswer, "HTML": granttest.HTML(200),
		"truncated": truncated, "error in a 200": granttest.OKWithError("invalid_grant"),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *behindBreaker) {
				b.ask(t, 4, clientCredentials, fault)
				if err := b.ask(t, 1, clientCredentials, nil); err != nil { // which begins the row anew
					t.Fatal(err)
				}
				b.ask(t, 4, clientCredentials, fault)
				b.wantTold(t)
				if err := b.ask(t, 1, clientCredentials, fault); errors.Is(err, tokencache.ErrNotAsked) {
					t.Errorf("the fifth was not let through: %v", err)
				}
				b.wantTold(t, true)
				b.wantRequests(t, 10)

				time.Sleep(10 * time.Second)
				for _, grantType := range bothGrants {
					err := b.ask(t, 3, grantType, nil)
					wantFailure(t, err, notAsked(20*time.Second))
					if !strings.Contains(err.Error(), grantType) {
						t.Errorf("%v does not tell the grant", err)
					}
				}
				b.wantRequests(t, 10)
			})
		})
	}
}

func TestTheFailureThatOpensTheBreakerSaysForHowLong(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		for n := 1; n <= breakerTrips; n++ {
			err := b.ask(t, 1, clientCredentials, granttest.Empty(500))
			want := time.Duration(0)
			if n == breakerTrips {
				want = breakerOpens
			}
			if got := err.(*Error).ClosedFor(); got != want {
				t.Errorf("failure %d: closed for %v, want %v", n, got, want)
			}
		}
	})
}

func TestFailuresOfBothGrantsAddUp(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		b.ask(t, 3, refreshToken, granttest.Empty(500))
		b.ask(t, 2, clientCredentials, granttest.Hang)
		b.wantTold(t, true)
	})
}

func TestOneProbeAfterARest(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		b.ask(t, 5, clientCredentials, granttest.Empty(500))
		time.Sleep(breakerOpens + time.Nanosecond)

		b.Always(granttest.Hang)
		probe := make(chan error)
		go func() { _, err := b.ClientCredentials(t.Context()); probe <- err }()
		synctest.Wait()
		for _, grantType := range bothGrants { // while the probe is in flight
			_, err := ask(t.Context(), b, grantType)
			wantFailure(t, err, notAsked(0))
		}
		wantFailure(t, <-probe, failure{tokencache.ErrOutcomeUnknown, "timeout", 0})
		b.wantRequests(t, 6)

		wantFailure(t, b.ask(t, 1, clientCredentials, nil), notAsked(breakerOpens)) // from when the probe failed
		b.wantTold(t, true)
		time.Sleep(breakerOpens + time.Nanosecond)
		if err := b.ask(t, 3, clientCredentials, nil); err != nil {
			t.Error(err)
		}
		b.wantTold(t, true, false)
		b.wantRequests(t, 9)
	})
}

func TestAServerThatRefusesOrAsksForPatienceIsUp(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"400": granttest.Empty(400), "401": granttest.Empty(401), "403": granttest.HTML(403), "404": granttest.HTML(404),
		"408": granttest.Empty(408), "429": granttest.TooManyRequests("60"),
		"redirect": granttest.Redirect(302, "/"), "DPoP": granttest.Answer(map[string]any{"access_token": "a", "token_type": "DPoP"}),
	} {
		for _, grantType := range bothGrants {
			t.Run(name+", "+grantType, func(t *testing.T) {
				inBubble(t, func(t *testing.T, b *behindBreaker) {
					b.ask(t, 20, grantType, fault)
					b.wantRequests(t, 20)
					b.ask(t, 4, grantType, granttest.Empty(500))
					b.ask(t, 1, grantType, fault) // which breaks the row of failures
					b.ask(t, 4, grantType, granttest.Empty(500))
					b.wantTold(t)
				})
			})
		}
	}
}

func TestTheFullGrantAfterARefusedRefreshAlwaysGoesOut(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		b.ask(t, 4, refreshToken, granttest.Empty(500))
		wantFailure(t, b.ask(t, 1, refreshToken, granttest.Empty(401)), invalidGrant)
		if err := b.ask(t, 1, clientCredentials, nil); err != nil {
			t.Errorf("after four failures: %v", err)
		}

		b.ask(t, 5, refreshToken, granttest.Empty(500))
		time.Sleep(breakerOpens + time.Nanosecond)
		wantFailure(t, b.ask(t, 1, refreshToken, granttest.Empty(401)), invalidGrant)
		if err := b.ask(t, 1, clientCredentials, nil); err != nil {
			t.Errorf("after a refused probe: %v", err)
		}
		b.wantTold(t, true, false)
	})
}

func TestTheFullGrantAfterALostRefreshAlwaysGoesOut(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		b.ask(t, 4, clientCredentials, granttest.Empty(500))
		if err := b.ask(t, 1, refreshToken, granttest.LoseAnswer); !errors.Is(err, tokencache.ErrOutcomeUnknown) {
			t.Fatalf("got %v", err)
		}
		b.wantTold(t, true)
		if err := b.ask(t, 1, clientCredentials, nil); err != nil {
			t.Errorf("although the old token may be dead: %v", err)
		}
		if err := b.ask(t, 1, clientCredentials, nil); !errors.Is(err, tokencache.ErrNotAsked) {
			t.Errorf("the next one went out as well: %v", err)
		}
	})
}

func TestFailuresOfOurOwnAreNotTheServers(t *testing.T) {
	unreadable := func() (tokencache.Secret, error) { return tokencache.Secret{}, errors.New("no such file") }
	cancelled := func(t *testing.T) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		return ctx
	}
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		readable := b.client.cfg.ClientSecret
		ourOwn := func(want failure) {
			t.Helper()
			b.Always(granttest.Hang)
			for range 10 {
				if _, err := b.ClientCredentials(cancelled(t)); err != context.Canceled {
					t.Errorf("got %v, want %v", err, context.Canceled)
				}
				b.client.cfg.ClientSecret = unreadable
				_, err := b.RefreshToken(t.Context(), tokencache.NewSecret("r"))
				wantFailure(t, err, want)
				b.client.cfg.ClientSecret = readable
			}
		}
		ourOwn(failure{nil, "secret_unreadable", 0})
		b.ask(t, 4, clientCredentials, granttest.Empty(500))
		ourOwn(failure{nil, "secret_unreadable", 0}) // and does not break a row of failures either
		b.wantTold(t)
		b.ask(t, 1, clientCredentials, granttest.Empty(500))
		b.wantTold(t, true)

		time.Sleep(breakerOpens + time.Nanosecond)
		ourOwn(failure{nil, "secret_unreadable", 0}) // nor spends the probe
		if err := b.ask(t, 1, clientCredentials, nil); err != nil {
			t.Errorf("the probe: %v", err)
		}
		b.wantTold(t, true, false)
	})
}

func TestABreakerNeedsNobodyToTell(t *testing.T) {
	inBubble(t, func(t *testing.T, b *behindBreaker) {
		b.Grants = WithBreaker(b.client, nil)
		wantFailure(t, b.ask(t, 6, clientCredentials, granttest.Empty(500)), notAsked(breakerOpens))
	})
}
