package proxy

import (
	"context"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// muteFor is how long 401s are taken for the upstream's true opinion after it
// has refused even a token made for the purpose.
const muteFor = time.Minute

// TokenSource gives out access tokens. It must be safe for concurrent use.
type TokenSource interface {
	// AccessToken returns a token that is valid now. It may wait for one,
	// until ctx is done at the latest. Its error may say why there is none by
	// methods Reason() string and RetryAfter() time.Duration.
	AccessToken(ctx context.Context) (string, error)
	// Invalidate says that the upstream refused accessToken. If that is the
	// one that AccessToken gives out, and another may be had, AccessToken
	// waits for it from now on.
	Invalidate(accessToken string)
}

// The outcomes of a refused token.
const (
	outcomeReplayed       = "replayed"         // the request was sent again with another token
	outcomeNotRepeatable  = "not_repeatable"   // its body was too large to be kept
	outcomeNoOtherToken   = "no_other_token"   // there was none to be had
	outcomeRefusedForGood = "refused_for_good" // fresh tokens are refused as well
)

// Outcomes lists every outcome that a [Recorder] may be told.
var Outcomes = []string{outcomeReplayed, outcomeNotRepeatable, outcomeNoOtherToken, outcomeRefusedForGood}

// bearer is a RoundTripper that adds the token. If the upstream refuses it,
// the request is sent again, once, with another: a 401 says that it was not
// carried out (RFC 9110 section 15.5.2), so that holds for a POST as well.
//
// Unlike other RoundTrippers it changes the request it is given. That is
// ReverseProxy's own copy, and one copy is enough.
type bearer struct {
	tokens       TokenSource
	next         http.RoundTripper
	unrepeatable *Unrepeatable
	recorder     Recorder

	latest     atomic.Pointer[authorization]
	accepted   atomic.Pointer[authorization] // the last that was not refused
	mutedUntil atomic.Pointer[time.Time]
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
	body, _ := req.Body.(*playback)
	if body != nil {
		defer body.forget()
		if body.tooLong || body.unsized {
			b.unrepeatable.add(1)
			defer b.unrepeatable.add(-1)
		}
	}
	first := b.authorization(token)
	resp, err := b.send(req, first)
	if err != nil || !refused(resp) {
		return resp, err
	}
	second, outcome := b.another(req.Context(), first, body)
	b.recorder.TokenRefused(outcome)
	if second == nil {
		return resp, nil
	}
	discard(resp)
	resp, err = b.send(again(req, body), second)
	if err == nil && refused(resp) && b.accepted.Load() != second {
		until := time.Now().Add(muteFor)
		b.mutedUntil.Store(&until)
	}
	return resp, err
}

func (b *bearer) send(req *http.Request, a *authorization) (*http.Response, error) {
	req.Header["Authorization"] = a.value
	resp, err := b.next.RoundTrip(req)
	if err == nil && !refused(resp) && b.accepted.Load() != a {
		b.accepted.Store(a)
	}
	return resp, err
}

// another returns what to send a request with again after the first token was
// refused, nil if it is not to be sent again.
func (b *bearer) another(ctx context.Context, first *authorization, body *playback) (*authorization, string) {
	if until := b.mutedUntil.Load(); until != nil && time.Now().Before(*until) {
		return nil, outcomeRefusedForGood
	}
	b.tokens.Invalidate(first.token)
	if body != nil && body.tooLong {
		return nil, outcomeNotRepeatable
	}
	token, err := b.tokens.AccessToken(ctx)
	if err != nil || token == first.token {
		return nil, outcomeNoOtherToken
	}
	if body != nil && !body.rewind(ctx) {
		return nil, outcomeNotRepeatable
	}
	return b.authorization(token), outcomeReplayed
}

func (b *bearer) authorization(token string) *authorization {
	a := b.latest.Load()
	if a == nil || a.token != token {
		a = &authorization{token, []string{"Bearer " + token}}
		b.latest.Store(a)
	}
	return a
}

// again returns a copy of req, which the transport may not have finished with.
func again(req *http.Request, body *playback) *http.Request {
	second := req.WithContext(req.Context())
	second.Header = maps.Clone(req.Header)
	if body != nil {
		second.Body = body.play()
	}
	return second
}

// discard makes the connection of an answer that nobody will see free again,
// if that takes no more than reading a little.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}

// refused reports whether another token may help. Lack of scope is said with a
// 403 (RFC 6750 section 3.1), but not by everyone.
func refused(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		return false
	}
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
