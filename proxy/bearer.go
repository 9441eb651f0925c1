package proxy

import (
	"context"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// discardPatience bounds the reading of an answer that nobody will see.
const discardPatience = 50 * time.Millisecond

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
	outcomeReplayed      = "replayed"       // the request was sent again with another token
	outcomeNotRepeatable = "not_repeatable" // its body was not kept
	outcomeNoOtherToken  = "no_other_token" // there was none to be had
	outcomeMuted         = "muted"          // none was asked for, since a fresh one was refused as well
)

// Outcomes lists every outcome that a [Recorder] may be told.
var Outcomes = []string{outcomeReplayed, outcomeNotRepeatable, outcomeNoOtherToken, outcomeMuted}

// bearer is a RoundTripper that adds the token. If the upstream refuses it,
// the request is sent again, once, with another: a 401 says that it was not
// carried out (RFC 9110 section 15.5.2), so that holds for a POST as well.
//
// Unlike other RoundTrippers it changes the request it is given. That is
// ReverseProxy's own copy, and one copy is enough.
type bearer struct {
	tokens       TokenSource
	next         http.RoundTripper
	unrepeatable *InFlight
	recorder     Recorder
	log          *zap.Logger

	latest   atomic.Pointer[authorization]
	refusals refusals
}

// authorization is a token with its finished header value, which all requests
// share.
type authorization struct {
	token string
	value []string
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	body, _ := req.Body.(*playback)
	if body != nil {
		defer body.forget()
	}
	first, err := b.tokens.AccessToken(req.Context())
	if err != nil {
		return nil, noToken{err}
	}
	if body != nil && body.mayBeLost {
		b.unrepeatable.Add(1)
		defer b.unrepeatable.Add(-1)
	}
	resp, err := b.send(req, first)
	if err != nil || !refused(resp) {
		return resp, err
	}
	second, outcome := b.another(req.Context(), first, body)
	b.recorder.TokenRefused(outcome)
	if outcome != outcomeReplayed {
		return resp, nil
	}
	discard(resp)
	resp, err = b.send(again(req, body), second)
	if err == nil {
		b.refusals.replayed(second, refused(resp), time.Now())
		if refused(resp) {
			b.log.Warn("the upstream refuses a fresh token as well: check SCOPE, AUDIENCE and RESOURCE, and that UPSTREAM_URL takes tokens of TOKEN_URL")
		}
	}
	return resp, err
}

func (b *bearer) send(req *http.Request, token string) (*http.Response, error) {
	req.Header["Authorization"] = b.authorization(token)
	body, ok := req.Body.(*playback)
	if !ok {
		return b.next.RoundTrip(req)
	}
	body.follow(req.Context())
	resp, err := b.next.RoundTrip(req)
	body.answered()
	return resp, err
}

// another returns the token to send a request with again after the first was
// refused, if the outcome is that it is to be sent again.
func (b *bearer) another(ctx context.Context, first string, body *playback) (token, outcome string) {
	muted := b.refusals.believed(first, time.Now())
	if !muted {
		b.tokens.Invalidate(first)
	}
	if body != nil && body.tooLong {
		return "", outcomeNotRepeatable
	}
	token, err := b.tokens.AccessToken(ctx)
	switch {
	case err == nil && token != first:
	case muted:
		return "", outcomeMuted
	default:
		return "", outcomeNoOtherToken
	}
	if body != nil && !body.rewind(ctx) {
		return "", outcomeNotRepeatable
	}
	return token, outcomeReplayed
}

// authorization returns the header value of a token. There is mostly one.
func (b *bearer) authorization(token string) []string {
	a := b.latest.Load()
	if a == nil || a.token != token {
		a = &authorization{token, []string{"Bearer " + token}}
		b.latest.Store(a)
	}
	return a.value
}

// again returns a copy of req, which the transport may not have finished with.
func again(req *http.Request, body *playback) *http.Request {
	second := req.WithContext(req.Context())
	second.Header = maps.Clone(req.Header)
	if body != nil {
		second.Body, second.Trailer = body.replay()
	}
	return second
}

// discard makes the connection of an answer that nobody will see free again,
// if that takes no more than reading a little.
func discard(resp *http.Response) {
	timer := time.AfterFunc(discardPatience, func() { _ = resp.Body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}

// unauthenticated is the status by which gRPC servers say 401.
const unauthenticated = "16"

// refused reports whether another token may help. Lack of scope is said with a
// 403 (RFC 6750 section 3.1), but not by everyone. A gRPC status is among the
// headers only if it is all that there is to the answer.
func refused(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		status := resp.Header["Grpc-Status"]
		return len(status) == 1 && status[0] == unauthenticated
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
