package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// statusClientGone is what is recorded when nobody is left to be answered; it
// is never sent. The number is nginx's.
const statusClientGone = 499

// failure is an answer of the proxy's own.
type failure struct {
	status  int
	reason  string // for metrics and the member "error"
	message string
	// proxyStatus is an error type of RFC 9209 section 2.3.
	proxyStatus string
	cause       string // one word; "": none
	retryAfter  time.Duration
}

// fail answers a request that has no answer from the upstream.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := explain(err, r)
	if f.status == statusClientGone {
		if observed, ok := w.(*response); ok {
			observed.status = f.status
		}
		panic(http.ErrAbortHandler) // or the server would answer 200, for one who only closed his half
	}
	hangUp(w.Header(), r)
	h.answer(w, f, err)
}

// answer answers with f, on account of err.
func (h *handler) answer(w http.ResponseWriter, f failure, err error) {
	h.recorder.RequestFailed(f.reason)
	h.log.Warn("request not served: "+f.reason, zap.String("cause", f.cause),
		zap.String("proxy_status", f.proxyStatus), zap.Int("status", f.status), zap.NamedError("error", shown(err)))
	f.write(w)
}

// explain finds out what went wrong with r, and so what to answer.
func explain(err error, r *http.Request) failure {
	body := bodyOf(r)
	interrupted := body != nil && body.client != nil && body.client.wasInterrupted() // by us, for the upstream has gone
	switch token, isToken := errors.AsType[noToken](err); {
	case body != nil && body.client != nil && body.client.stalled():
		return failure{status: http.StatusRequestTimeout, reason: "request_stalled",
			message: "The client sent nothing of the request's body for longer than STALL_TIMEOUT.", proxyStatus: "http_request_error"}
	case errors.Is(r.Context().Err(), context.Canceled) && !interrupted:
		return failure{status: statusClientGone}
	case isToken:
		return tokenUnavailable(token)
	case body != nil && body.broken.Load():
		return failure{status: http.StatusBadRequest, reason: "request_body",
			message: "The request's body broke off or is malformed.", proxyStatus: "http_request_error"}
	case isTimeout(err):
		return failure{status: http.StatusGatewayTimeout, reason: "upstream_timeout",
			message: "The upstream did not answer in time.", proxyStatus: timeoutType(err)}
	}
	return failure{status: http.StatusBadGateway, reason: "upstream_unreachable",
		message: "The upstream could not be reached, or broke off before it answered.", proxyStatus: unreachableType(err)}
}

// reasonBrokeOff is for answers that had begun; no other can take their place.
const reasonBrokeOff = "upstream_broke_off"

// Reasons lists every reason that a [Recorder] may be told.
var Reasons = []string{
	"token_unavailable", "request_body", "request_stalled", "upstream_timeout", "upstream_unreachable", reasonBrokeOff, "overloaded",
	"method_refused", "target_refused", "host_refused", "header_refused", "path_refused",
}

var overloaded = failure{status: http.StatusServiceUnavailable, reason: "overloaded",
	message: "The sidecar serves as many requests as it may at a time, which MAX_IN_FLIGHT tells.", proxyStatus: "connection_limit_reached",
	retryAfter: time.Second}

func tokenUnavailable(err error) failure {
	f := failure{status: http.StatusServiceUnavailable, reason: "token_unavailable",
		message: "The sidecar holds no valid access token. Its log, and /readyz on its admin port, tell why.", proxyStatus: "proxy_internal_error"}
	if e, ok := errors.AsType[interface {
		error
		Reason() string
		RetryAfter() time.Duration
	}](err); ok {
		f.cause, f.retryAfter = e.Reason(), max(e.RetryAfter(), time.Second)
	}
	return f
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && e.Timeout()
}

func timeoutType(err error) string {
	switch e, ok := errors.AsType[*net.OpError](err); {
	case ok && e.Op == "dial":
		return "connection_timeout"
	case ok:
		return "connection_read_timeout"
	}
	return "http_response_timeout"
}

func unreachableType(err error) string {
	if errors.Is(err, errStatus) {
		return "http_protocol_error"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "dns_error"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "tls_certificate_error"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "tls_protocol_error"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "tls_alert_received"
	}
	switch e, ok := errors.AsType[*net.OpError](err); {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection_refused"
	case ok && e.Op == "dial":
		return "destination_unavailable"
	}
	return "connection_terminated"
}

// shown is the part of err that quotes nothing of what was sent or received.
func shown(err error) error {
	if errors.Is(err, errStatus) {
		return err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[noToken](err); ok {
		return e.error
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return mistrust(e)
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errors.New(e.Msg)
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return e
	}
	return nil
}

// mistrust tells what is wrong with the upstream's certificate, but nothing that
// stands in it.
func mistrust(err error) error {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return errors.New("the certificate is not valid for " + e.Host + ": check UPSTREAM_URL")
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return errors.New("the certificate is signed by an unknown authority: name its CA by UPSTREAM_CA_FILE")
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return errors.New("the certificate has expired or is not yet valid: have it renewed, or set this machine's clock right")
	}
	return errors.New("the certificate is not valid")
}

// pseudonym is how this proxy is called in Proxy-Status (RFC 9209 section 2).
const pseudonym = "token-sidecar"

// disown takes out what an upstream says in our name. Every comma separates
// members here, those within strings as well: so nothing is left that anybody
// could take for a member, however he reads quotation marks that are astray.
func disown(h http.Header) {
	for _, name := range []string{"Proxy-Status", http.TrailerPrefix + "Proxy-Status"} {
		var others []string
		for _, line := range h[name] {
			members := slices.DeleteFunc(strings.Split(line, ","), isOurs)
			if len(members) > 0 {
				others = append(others, strings.Join(members, ","))
			}
		}
		if others == nil {
			delete(h, name)
		} else {
			h[name] = others
		}
	}
}

// dropFraming takes fields out that are not for trailers, or interim answers, to
// say. HTTP/2 lets them pass, and in HTTP/1.1 they might be believed.
func dropFraming(h http.Header, prefix string) {
	for name := range h {
		if field, ok := strings.CutPrefix(name, prefix); ok && slices.Contains(noTrailers, hyphenated(field)) {
			delete(h, name)
		}
	}
}

// isOurs reports whether a member of Proxy-Status is said by this proxy.
func isOurs(member string) bool {
	item, _, _ := strings.Cut(member, ";")
	return strings.EqualFold(strings.Trim(item, " \t\""), pseudonym)
}

// write answers in the JSON shape of Admin API v3, with a header that names us
// as the source (RFC 9209): an upstream's own 503 looks different.
func (f failure) write(w http.ResponseWriter) {
	details := map[string]any{"source": pseudonym}
	status := pseudonym + "; error=" + f.proxyStatus
	if f.cause != "" {
		details["reason"] = f.cause
		status += fmt.Sprintf("; details=%q", f.cause)
	}
	if f.retryAfter > 0 {
		seconds := int(math.Ceil(f.retryAfter.Seconds()))
		details["retry_after_seconds"] = seconds
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	w.Header().Set("Proxy-Status", status)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	body, _ := json.Marshal(map[string]any{
		"error": f.reason, "message": f.message, "code": "SIDECAR_" + strings.ToUpper(f.reason), "details": details,
	})
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.status)
	_, _ = w.Write(body)
}
