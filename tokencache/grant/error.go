package grant

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

// The reasons for which a token request fails, for [Error.Reason].
const (
	reasonUnreachable      = "unreachable"       // no connection: name, route or port
	reasonTLS              = "tls"               // no handshake, or a certificate we do not trust
	reasonTimeout          = "timeout"           // no whole answer in time
	reasonConnectionLost   = "connection_lost"   // sent, and the connection broke
	reasonRateLimited      = "rate_limited"      // 408, 429
	reasonUnavailable      = "unavailable"       // 503
	reasonServerError      = "server_error"      // other 5xx
	reasonBadResponse      = "bad_response"      // 2xx that is no token response
	reasonRedirect         = "redirect"          // 3xx, never followed
	reasonInvalidClient    = "invalid_client"    // 401 or 403 to the full grant
	reasonInvalidGrant     = "invalid_grant"     // the refresh token was refused
	reasonInvalidRequest   = "invalid_request"   // any other 4xx
	reasonWrongEndpoint    = "wrong_endpoint"    // 404, 405
	reasonTokenType        = "token_type"        // not a bearer token
	reasonSecretUnreadable = "secret_unreadable" // CLIENT_SECRET_FILE
	reasonBreakerOpen      = "breaker_open"      // see WithBreaker
)

// Reasons lists every reason that an [Error] may have.
var Reasons = []string{
	reasonUnreachable, reasonTLS, reasonTimeout, reasonConnectionLost, reasonRateLimited, reasonUnavailable, reasonServerError,
	reasonBadResponse, reasonRedirect, reasonInvalidClient, reasonInvalidGrant, reasonInvalidRequest,
	reasonWrongEndpoint, reasonTokenType, reasonSecretUnreadable, reasonBreakerOpen,
}

// Error is a token request that brought no token. Its text is our own: of the
// server's answer it shows the status and an error code known to us, never
// anything else, since servers echo what they are sent.
//
// errors.Is finds the sentinel of package tokencache that applies, if any.
type Error struct {
	Endpoint  string // the URL, without query
	GrantType string
	Status    int    // 0: no answer
	Code      string // RFC 6749 section 5.2; "": none, or not a known one

	reason     string
	advice     string // what happened and what to do about it
	retryAfter time.Duration
	closedFor  time.Duration
	sentinel   error
}

func (e *Error) Error() string {
	what := []string{strings.TrimSpace("token endpoint " + e.Endpoint), e.GrantType + " grant"}
	if e.GrantType == revocation {
		what = []string{"revocation endpoint " + e.Endpoint}
	}
	if e.Status != 0 {
		what = append(what, strings.TrimSpace(fmt.Sprintf("answered %d %s", e.Status, e.Code)))
	}
	return strings.Join(append(what, e.advice), ": ")
}

// Reason returns one of [Reasons].
func (e *Error) Reason() string { return e.reason }

// RetryAfter returns how long the server asked to be left alone.
func (e *Error) RetryAfter() time.Duration { return e.retryAfter }

// ClosedFor returns how long the circuit breaker will let no further request
// through; 0: it is closed, or there is none.
func (e *Error) ClosedFor() time.Duration { return e.closedFor }

// Is reports whether target is the sentinel that e stands for.
func (e *Error) Is(target error) bool { return target == e.sentinel }

// location is what every error of one request has in common.
type location struct{ endpoint, grantType string }

func (l location) error(status int, reason, advice string, sentinel error) *Error {
	return &Error{Endpoint: l.endpoint, GrantType: l.grantType, Status: status, reason: reason, advice: advice, sentinel: sentinel}
}

// rejected is the sentinel for an answer that this grant will get again.
func (l location) rejected() error {
	if l.grantType == refreshToken {
		return tokencache.ErrRefreshTokenRejected
	}
	return tokencache.ErrClientRejected
}

func (l location) secretUnreadable() error {
	return l.error(0, reasonSecretUnreadable, "the client secret could not be read, or is empty: check CLIENT_SECRET_FILE", nil)
}

// broken is a request that got no answer, or only the beginning of one.
func (l location) broken(err error, connected, handshakeFailed, expired bool) error {
	var sentinel error
	if connected {
		sentinel = tokencache.ErrOutcomeUnknown
	}
	switch {
	case handshakeFailed:
		return l.error(0, reasonTLS, "no TLS connection: "+tlsCause(err), nil)
	case alerted(err): // TLS 1.3 servers look at our certificate when we have begun to send
		return l.error(0, reasonTLS, "no TLS connection: "+tlsCause(err), sentinel)
	case expired || isTimeout(err):
		return l.error(0, reasonTimeout, "no whole answer in time", sentinel)
	case connected:
		return l.error(0, reasonConnectionLost, "the connection broke before a whole answer had come", sentinel)
	}
	return l.error(0, reasonUnreachable, "no connection: "+dialCause(err)+"; check the URL and the network", nil)
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// dialCause shows only errors known to quote nothing that was sent or received.
func dialCause(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Error()
	}
	return "the connection could not be made"
}

// knownCodes are the error codes that may be shown: those of RFC 6749 section
// 5.2 and RFC 8707, and common others.
var knownCodes = []string{
	"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
	"invalid_scope", "invalid_target", "access_denied", "server_error", "temporarily_unavailable", "slow_down",
	"use_dpop_nonce", "unsupported_token_type", "bad_refresh_token", "incorrect_client_credentials", "unsupported_response_type",
}

func knownCode(code string) string {
	if slices.Contains(knownCodes, code) {
		return code
	}
	return ""
}
