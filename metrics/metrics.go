// Package metrics holds every Prometheus collector of the sidecar, and nothing
// else. [Metrics] fits the Recorder interfaces of the packages that have
// something to report; none of them, nor this one, imports the other.
//
// No path, host, token or other text from outside becomes a label value, so
// the number of series is bounded whatever is sent.
package metrics

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is the set of collectors. Its methods are safe for concurrent use
// and do not block.
type Metrics struct {
	refreshes       *prometheus.CounterVec
	refreshErrors   *prometheus.CounterVec
	refreshDuration *prometheus.HistogramVec
	expiry          prometheus.Gauge
	lastSuccess     prometheus.Gauge
	nextRefresh     prometheus.Gauge
	failures        prometheus.Gauge
	anomalies       *prometheus.CounterVec
	skew            prometheus.Gauge
	breakerOpen     prometheus.Gauge
	contested       prometheus.Gauge

	requests *prometheus.CounterVec
	served   [len(methods) + 1][maxStatus + 1]atomic.Pointer[prometheus.Counter] // of requests
	duration prometheus.Histogram
	inFlight prometheus.Gauge
	failed   *prometheus.CounterVec
	refusals *prometheus.CounterVec
}

// New registers the collectors with reg.
func New(reg prometheus.Registerer, version string) *Metrics {
	m := &Metrics{
		refreshes: counters("token_refreshes_total",
			"Requests to the token endpoint, by grant and by what came of them: success, unchanged (it answered with the token already held), rejected (it refused the client or the refresh token) or error.",
			"grant_type", "result"),
		refreshErrors: counters("token_refresh_errors_total",
			"Requests to the token endpoint that brought no token, by grant and reason. invalid_client: check the credentials. invalid_grant on refresh_token is the ordinary end of a refresh token.",
			"grant_type", "reason"),
		refreshDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name("token_refresh_duration_seconds"), Help: "How long requests to the token endpoint took.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"grant_type"}),
		expiry:      gauge("token_expiry_timestamp_seconds", "When the access token held expires, in Unix time; 0 while there is none. Requests are served until then, whatever the token endpoint does."),
		lastSuccess: gauge("token_last_refresh_success_timestamp_seconds", "When the token endpoint last issued a token, in Unix time; 0 before the first."),
		nextRefresh: gauge("token_next_refresh_timestamp_seconds", "When the token endpoint will be asked next, in Unix time."),
		failures:    gauge("token_refresh_consecutive_failures", "Tries to replace the token that have failed in a row; 0 after a success."),
		anomalies: counters("token_expiry_anomalies_total",
			"Statements of the token endpoint about a token's expiry that cannot be right and were not followed, by kind. If it grows, set EXPIRES_IN_FORMAT.", "kind"),
		skew:        gauge("token_endpoint_clock_skew_seconds", "How far the token endpoint's clock, as its Date header tells, is ahead of the local clock."),
		breakerOpen: gauge("token_endpoint_breaker_open", "1 while the circuit breaker keeps requests from a token endpoint that failed repeatedly, else 0."),
		requests: counters("requests_total",
			"Requests answered, by method (unusual ones as other) and status code (unregistered ones by their class, such as 5xx). Code 499: the client left first.", "method", "code"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name("request_duration_seconds"), Help: "How long requests took, from their head to the last byte of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		inFlight: gauge("requests_in_flight", "Requests being served now."),
		failed: counters("request_errors_total",
			"Requests that the sidecar answered itself, or whose answer was not whole, by reason: token_unavailable (503), upstream_unreachable (502), upstream_timeout (504), upstream_broke_off (after the answer had begun; the connection to the app was cut), request_body (400, the client's body broke off), request_stalled (408, nothing came of the client's body for STALL_TIMEOUT), overloaded (503, MAX_IN_FLIGHT requests were being served), method_refused (405), target_refused (400, no path, or one with dot segments or control characters), host_refused (421, Host shows a name that is not the sidecar's: see ALLOWED_HOSTS), header_refused (400, an underscore in a field name, a field that overrides method or path, or one that must not be a trailer; 431, more than 32 trailers; 403, from a page of another site: see ALLOW_UNDERSCORE_HEADERS and ALLOW_CROSS_SITE), path_refused (403, not in ALLOWED_PATHS).", "reason"),
	}
	m.refusals = counters("token_refusals_total",
		"Answers 401 of the upstream on account of the token, by what was done: replayed (sent again with another token), not_repeatable (the body was too large to be kept for that), no_other_token (none was to be had), muted (none was asked for, since a fresh one was refused as well). Answers to what was replayed are not looked at again; all other reached the app.", "outcome")
	m.contested = gauge("token_contested", "1 while tokens keep dying before their time, which is what a second user of the same client does to a server that allows one pair of tokens per client, else 0.")
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: name("build_info"), Help: "Always 1; the label tells the version that runs.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	reg.MustRegister(build, m.refreshes, m.refreshErrors, m.refreshDuration, m.expiry, m.lastSuccess, m.nextRefresh,
		m.failures, m.anomalies, m.skew, m.breakerOpen, m.requests, m.duration, m.inFlight, m.failed, m.refusals, m.contested)
	return m
}

func name(s string) string { return "token_sidecar_" + s }

func gauge(n, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name(n), Help: help})
}

func counters(n, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, labels)
}

// Labels are the label values that may occur, where they are known beforehand.
type Labels struct{ RefreshReasons, AnomalyKinds, RequestReasons, RefusalOutcomes []string }

// Expect makes series known before their first increment, at 0, so that a
// rate over the first failure shows it.
func (m *Metrics) Expect(labels Labels) {
	for _, grantType := range []string{"client_credentials", "refresh_token"} {
		for _, result := range []string{"success", "unchanged", "rejected", "error"} {
			m.refreshes.WithLabelValues(grantType, result)
		}
		for _, reason := range labels.RefreshReasons {
			m.refreshErrors.WithLabelValues(grantType, reason)
		}
	}
	for counter, values := range map[*prometheus.CounterVec][]string{
		m.anomalies: labels.AnomalyKinds, m.failed: labels.RequestReasons, m.refusals: labels.RefusalOutcomes,
	} {
		for _, value := range values {
			counter.WithLabelValues(value)
		}
	}
}

// TokenRefreshed counts one request to the token endpoint.
func (m *Metrics) TokenRefreshed(grantType, result, reason string, took time.Duration) {
	m.refreshes.WithLabelValues(grantType, result).Inc()
	m.refreshDuration.WithLabelValues(grantType).Observe(took.Seconds())
	if reason != "" {
		m.refreshErrors.WithLabelValues(grantType, reason).Inc()
		return
	}
	m.lastSuccess.SetToCurrentTime()
}

// TokenScheduled sets what the cache plans. A zero expiry means no token.
func (m *Metrics) TokenScheduled(expiry, next time.Time, failures int) {
	m.expiry.Set(timestamp(expiry))
	m.nextRefresh.Set(timestamp(next))
	m.failures.Set(float64(failures))
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}

// ExpiryAnomaly counts an expiry that could not be believed.
func (m *Metrics) ExpiryAnomaly(kind string) { m.anomalies.WithLabelValues(kind).Inc() }

// ClockSkew sets how far the token endpoint's clock is ahead.
func (m *Metrics) ClockSkew(ahead time.Duration) { m.skew.Set(ahead.Seconds()) }

// BreakerChanged sets whether the circuit breaker is open.
func (m *Metrics) BreakerChanged(open bool) { set(m.breakerOpen, open) }

// TokenContested sets whether tokens keep dying before their time.
func (m *Metrics) TokenContested(contested bool) { set(m.contested, contested) }

func set(g prometheus.Gauge, on bool) {
	g.Set(0)
	if on {
		g.Set(1)
	}
}

// RequestStarted counts a request in flight, until RequestServed.
func (m *Metrics) RequestStarted() { m.inFlight.Inc() }

// RequestServed counts a request answered.
func (m *Metrics) RequestServed(method string, status int, took time.Duration) {
	m.inFlight.Dec()
	m.duration.Observe(took.Seconds())
	m.counter(method, status).Inc()
}

// TokenRefused counts a 401 of the upstream on account of the token.
func (m *Metrics) TokenRefused(outcome string) { m.refusals.WithLabelValues(outcome).Inc() }

// RequestFailed counts an answer of the sidecar's own.
func (m *Metrics) RequestFailed(reason string) { m.failed.WithLabelValues(reason).Inc() }

var methods = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

const (
	maxStatus        = 599
	statusClientGone = 499
)

// counter finds the child of requests without hashing its labels each time.
// Methods that anyone may invent are folded, and so are statuses.
func (m *Metrics) counter(method string, status int) prometheus.Counter {
	i := 0
	for i < len(methods) && methods[i] != method {
		i++
	}
	if status < 100 || status > maxStatus { // none was sent, or one that does not exist
		status = http.StatusInternalServerError
	}
	slot := &m.served[i][status]
	if c := slot.Load(); c != nil {
		return *c
	}
	label := "other"
	if i < len(methods) {
		label = methods[i]
	}
	code := strconv.Itoa(status)
	if http.StatusText(status) == "" && status != statusClientGone {
		code = code[:1] + "xx"
	}
	c := m.requests.WithLabelValues(label, code)
	slot.Store(&c)
	return c
}
