package proxy

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
)

// TokenSource gives out access tokens. It must be safe for concurrent use.
type TokenSource interface {
	// AccessToken returns a token that is valid now. It may wait for one,
	// until ctx is done at the latest. Its error may say why there is none by
	// methods Reason() string and RetryAfter() time.Duration.
	AccessToken(ctx context.Context) (string, error)
	// Invalidate says that the upstream refused accessToken.
	Invalidate(accessToken string)
}

// bearer is a RoundTripper that adds the token. Unlike others it changes the
// request it is given: that is ReverseProxy's own copy, and one copy is enough.
type bearer struct {
	tokens TokenSource
	next   http.RoundTripper
	latest atomic.Pointer[authorization]
}

// authorization is a token with its finished header value, which all requests
// share.
type authorization struct {
	token string
	value []string
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := b.tokens.AccessToken(req.Context())
	if err != nil {
		return nil, noToken{err}
	}
	req.Header["Authorization"] = b.header(token)
	resp, err := b.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && concernsToken(resp) {
		b.tokens.Invalidate(token)
	}
	return resp, err
}

func (b *bearer) header(token string) []string {
	a := b.latest.Load()
	if a == nil || a.token != token {
		a = &authorization{token, []string{"Bearer " + token}}
		b.latest.Store(a)
	}
	return a.value
}

// concernsToken reports whether another token may help against a 401. Lack of
// scope is said with a 403 (RFC 6750 section 3.1), but not by everyone.
func concernsToken(resp *http.Response) bool {
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if strings.Contains(challenge, "insufficient_scope") {
			return false
		}
	}
	return true
}

// noToken marks the errors of a TokenSource.
type noToken struct{ error }

func (e noToken) Unwrap() error { return e.error }
