package tokencache

import (
	"context"
	"errors"
	"time"
)

// Token is an access token with what the authorization server said of it
// (RFC 6749 section 5.1). With a refresh token it is a pair.
type Token struct {
	Access  Secret
	Refresh Secret // zero: none was issued

	// Issued is when the request for it was sent, and so the latest moment
	// known to lie before the token's life began. It carries a monotonic
	// reading, as Expiry does.
	Issued time.Time
	// Expiry is the moment from which Access is not sent any more.
	Expiry time.Time
	// RefreshExpiry is the moment from which Refresh is not used any more;
	// zero when the server did not say.
	RefreshExpiry time.Time

	// Lifetime is the span that the next refresh is planned in. It is shorter
	// than Expiry allows where the server claims a longer life than Grants
	// cares to rely on: such a token is replaced early, yet serves to its
	// Expiry if no other can be had.
	Lifetime time.Duration
	// RefreshIn is the server's own wish for the next refresh; zero: none.
	RefreshIn time.Duration
}

// Grants asks the authorization server for tokens. Its errors may wrap one of
// the sentinels below, and may implement [Failure].
type Grants interface {
	// ClientCredentials performs the full grant of RFC 6749 section 4.4.
	ClientCredentials(ctx context.Context) (Token, error)
	// RefreshToken performs the grant of RFC 6749 section 6. A Token without
	// a new refresh token keeps the one it was asked with.
	RefreshToken(ctx context.Context, refreshToken Secret) (Token, error)
}

var (
	// ErrRefreshTokenRejected says that the server refused the refresh token.
	// The full grant is next, at once.
	ErrRefreshTokenRejected = errors.New("refresh token rejected")
	// ErrOutcomeUnknown says that a request was sent and no whole answer
	// came. A refresh token so sent may be spent, and to send it again may
	// look like theft (RFC 9700 section 4.14): the full grant is next, at once.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrClientRejected says that the full grant was refused in a way that
	// asking again will not change: credentials or configuration are wrong.
	ErrClientRejected = errors.New("client rejected")
	// ErrNotAsked says that no request was made, as while a circuit breaker
	// is open. It is no failure of the server's and is not counted as one.
	ErrNotAsked = errors.New("not asked")
)

// Failure is what an error of [Grants] may tell beside the sentinels. One that
// knows that the next request will not be let through, as a circuit breaker
// does, says for how long by a further method, ClosedFor() time.Duration.
type Failure interface {
	error
	// Reason is one word of a small fixed set, fit for a metric label.
	Reason() string
	// RetryAfter is how long the server asked to be left alone; 0: it did not ask.
	RetryAfter() time.Duration
}
