package grant

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

const (
	// What is waited after an answer that asks for patience but not how much.
	patience429 = 5 * time.Second
	patience    = time.Second

	maxToken = 16 << 10
)

// judge decides what an answer means. It returns the fields of a token
// response that can be used, or an *Error.
func (l location) judge(a answer, now time.Time) (fields, error) {
	f, err := parseFields(a.body)
	if a.status >= 200 && a.status < 300 {
		return f, l.judgeSuccess(a, f, err)
	}
	e := l.judgeFailure(a.status)
	e.Code = knownCode(f.text("error"))
	if e.reason == reasonRateLimited || e.reason == reasonUnavailable {
		e.retryAfter = parseRetryAfter(a.header.Get("Retry-After"), now)
		if e.retryAfter == 0 {
			e.retryAfter = patience
			if a.status == http.StatusTooManyRequests {
				e.retryAfter = patience429
			}
		}
	}
	if e.Code == "use_dpop_nonce" {
		e.reason, e.advice = reasonTokenType, adviceDPoP
	}
	return nil, e
}

const adviceInvalidClient = "the client is refused: check CLIENT_ID, the client secret and CLIENT_AUTH_METHOD"

// clientCodes are the codes of a wrong client, which no second try mends,
// whatever the status beside them.
var clientCodes = []string{"invalid_client", "unauthorized_client", "incorrect_client_credentials"}

const adviceDPoP = "the server demands DPoP (RFC 9449), which a bearer token cannot satisfy: have bearer tokens enabled for this client"

// notBearer are the types of token that demand more of the client than to send
// them. Servers have many names for a bearer token ("BearerToken",
// "Application Access Token"), so only these are refused.
var notBearer = map[string]string{
	"dpop": adviceDPoP,
	"mac":  "the token is a MAC token, with which every request would have to be signed: have bearer tokens enabled for this client",
	"pop":  "the token is bound to a key, which every request would have to prove: have bearer tokens enabled for this client",
	"n_a":  "the token is not an access token (RFC 8693 section 2.2.1): ask for one by TOKEN_PARAMETERS",
}

func (l location) judgeSuccess(a answer, f fields, malformed error) error {
	// A refresh so answered may have been carried out, so its token may be spent.
	bad := func(advice string) error {
		return l.error(a.status, reasonBadResponse, advice, l.unknownRefresh())
	}
	switch {
	case malformed != nil:
		return bad("the answer is neither a JSON object nor a form, or is larger than 256 KiB: check that TOKEN_URL is the token endpoint")
	case f.refuses():
		e := l.error(a.status, reasonBadResponse, "the answer is an error in spite of its status", nil)
		e.Code = knownCode(f.text("error"))
		switch {
		case l.grantType == refreshToken:
			e.reason, e.sentinel = reasonInvalidGrant, l.rejected()
		case slices.Contains(clientCodes, e.Code):
			e.reason, e.advice, e.sentinel = reasonInvalidClient, adviceInvalidClient, l.rejected()
		}
		return e
	case f.text("access_token") == "":
		return bad("the answer holds no access_token")
	case !usableToken(f.text("access_token")):
		return bad("the access_token holds characters that no header may, or is longer than 16 KiB")
	}
	if advice := notBearer[strings.ToLower(f.text("token_type"))]; advice != "" {
		return l.error(a.status, reasonTokenType, advice, l.rejected())
	}
	return nil
}

func (l location) unknownRefresh() error {
	if l.grantType == refreshToken {
		return tokencache.ErrOutcomeUnknown
	}
	return nil
}

func (l location) judgeFailure(status int) *Error {
	switch {
	case status < 300:
		return l.error(status, reasonBadResponse, "no token endpoint answers so: check TOKEN_URL", l.unknownRefresh())
	case status < 400:
		return l.error(status, reasonRedirect, "redirects are not followed, since they would carry the credentials elsewhere: set TOKEN_URL to the final address", l.rejected())
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests:
		return l.error(status, reasonRateLimited, "the server asks for patience", nil)
	case status == http.StatusServiceUnavailable:
		return l.error(status, reasonUnavailable, "the server says that it is not available", nil)
	case status >= 500:
		return l.error(status, reasonServerError, "the server failed", nil)
	case l.grantType == refreshToken:
		return l.error(status, reasonInvalidGrant, "the refresh token is not accepted", l.rejected())
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return l.error(status, reasonInvalidClient, adviceInvalidClient, l.rejected())
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return l.error(status, reasonWrongEndpoint, "this is not a token endpoint: check TOKEN_URL", l.rejected())
	}
	return l.error(status, reasonInvalidRequest, "the request is not accepted: check CLIENT_AUTH_METHOD, TOKEN_REQUEST_ENCODING, SCOPE, AUDIENCE and RESOURCE", l.rejected())
}

// usableToken reports whether a token can stand in a header: visible ASCII
// without the characters that end a value or a list member. That is wider
// than RFC 6750's b64token, because well-known servers put '!' or '|' into
// theirs, and narrower than RFC 6749 appendix A.12.
func usableToken(token string) bool {
	return len(token) <= maxToken && !strings.ContainsFunc(token, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == ',' || r == '"' || r == '\\'
	})
}

// tlsCause names the failures that an operator can act on, and how.
func tlsCause(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the certificate is signed by an unknown authority: name its CA by TOKEN_CA_FILE"
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is not valid for " + e.Host + ": check the URL"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "the certificate has expired or is not yet valid: have it renewed, or set this machine's clock right"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not speak TLS: check the URL's scheme and port"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && alerted(err) {
		return "the server ends it: " + e.Err.Error() + "; it must speak TLS 1.2 or later, and if it wants a client certificate, accept that of TOKEN_CERT_FILE"
	}
	if isTimeout(err) {
		return "the handshake was not finished in time"
	}
	return "the handshake failed: see whether the server speaks TLS 1.2 or later, and what is wrong with its certificate"
}

// alerted reports whether the server sent an alert (RFC 8446 section 6), whose
// name is all that such an error tells.
func alerted(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "remote error"
}
