package grant

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

const (
	breakerTrips = 5                // failures in a row that open it
	breakerOpens = 30 * time.Second // until one request may probe
)

// WithBreaker puts a circuit breaker before next, so that nothing in the
// process, whatever its reasons, presses an authorization server that is
// down. While it is open requests fail with tokencache.ErrNotAsked.
//
// A refusal or a plea for patience shows that the server is up: it counts as
// a success. The full grant that follows a refresh token refused, or lost,
// always goes out: the access token may be dead as well. onChange, if not nil,
// is told when the breaker opens and when it closes.
func WithBreaker(next tokencache.Grants, onChange func(open bool)) tokencache.Grants {
	b := &breaker{next: next}
	b.circuit = gobreaker.NewCircuitBreaker[tokencache.Token](gobreaker.Settings{
		Timeout:      breakerOpens,
		ReadyToTrip:  func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= breakerTrips },
		IsSuccessful: serverIsUp,
		IsExcluded:   neverSent,
		OnStateChange: func(_ string, from, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				until := time.Now().Add(breakerOpens)
				b.openUntil.Store(&until)
			}
			if open := to != gobreaker.StateClosed; onChange != nil && open != (from != gobreaker.StateClosed) {
				onChange(open) // and not when it lets a request probe
			}
		},
	})
	return b
}

type breaker struct {
	next      tokencache.Grants
	circuit   *gobreaker.CircuitBreaker[tokencache.Token]
	openUntil atomic.Pointer[time.Time]
	spent     atomic.Bool // a refresh token is gone and no full grant has followed
}

func (b *breaker) ClientCredentials(ctx context.Context) (tokencache.Token, error) {
	if b.spent.Swap(false) {
		return b.next.ClientCredentials(ctx)
	}
	return b.guard(clientCredentials, func() (tokencache.Token, error) { return b.next.ClientCredentials(ctx) })
}

func (b *breaker) RefreshToken(ctx context.Context, old tokencache.Secret) (tokencache.Token, error) {
	token, err := b.guard(refreshToken, func() (tokencache.Token, error) { return b.next.RefreshToken(ctx, old) })
	b.spent.Store(errors.Is(err, tokencache.ErrRefreshTokenRejected) || errors.Is(err, tokencache.ErrOutcomeUnknown))
	return token, err
}

func (b *breaker) guard(grantType string, request func() (tokencache.Token, error)) (tokencache.Token, error) {
	token, err := b.circuit.Execute(request)
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return token, &Error{
			GrantType:  grantType,
			reason:     reasonBreakerOpen,
			advice:     "not asked: it failed several times in a row and is given a rest",
			retryAfter: b.openFor(),
			sentinel:   tokencache.ErrNotAsked,
		}
	}
	if e, ok := errors.AsType[*Error](err); ok && b.circuit.State() == gobreaker.StateOpen {
		e.closedFor = b.openFor()
	}
	return token, err
}

func (b *breaker) openFor() time.Duration { return max(0, time.Until(*b.openUntil.Load())) }

// neverSent finds the failures that are our own.
func neverSent(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return errors.Is(err, context.Canceled) || ok && e.reason == reasonSecretUnreadable
}

func serverIsUp(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return err == nil || ok && (e.reason == reasonRateLimited ||
		errors.Is(err, tokencache.ErrRefreshTokenRejected) || errors.Is(err, tokencache.ErrClientRejected))
}
