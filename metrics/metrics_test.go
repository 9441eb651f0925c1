package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetricsTellWhatHappened(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := New(reg, "1.2.3")
	m.TokenRefreshed("client_credentials", "success", "", time.Second)
	m.TokenRefreshed("refresh_token", "rejected", "invalid_grant", time.Second)
	m.TokenScheduled(time.Unix(2000, 5e8), time.Unix(1000, 0), 3)
	m.ExpiryAnomaly("past")
	m.ClockSkew(-2 * time.Second)
	m.BreakerChanged(true)
	m.TokenContested(true)
	m.RequestStarted()
	m.RequestStarted()
	m.RequestServed("GET", 200, 20*time.Millisecond)
	m.RequestFailed("token_unavailable")
	m.TokenRefused("replayed")

	want := `
# TYPE token_sidecar_build_info gauge
token_sidecar_build_info{version="1.2.3"} 1
# TYPE token_sidecar_request_errors_total counter
token_sidecar_request_errors_total{reason="token_unavailable"} 1
# TYPE token_sidecar_requests_in_flight gauge
token_sidecar_requests_in_flight 1
# TYPE token_sidecar_requests_total counter
token_sidecar_requests_total{code="200",method="GET"} 1
# TYPE token_sidecar_token_contested gauge
token_sidecar_token_contested 1
# TYPE token_sidecar_token_endpoint_breaker_open gauge
token_sidecar_token_endpoint_breaker_open 1
# TYPE token_sidecar_token_endpoint_clock_skew_seconds gauge
token_sidecar_token_endpoint_clock_skew_seconds -2
# TYPE token_sidecar_token_expiry_anomalies_total counter
token_sidecar_token_expiry_anomalies_total{kind="past"} 1
# TYPE token_sidecar_token_expiry_timestamp_seconds gauge
token_sidecar_token_expiry_timestamp_seconds 2000.5
# TYPE token_sidecar_token_next_refresh_timestamp_seconds gauge
token_sidecar_token_next_refresh_timestamp_seconds 1000
# TYPE token_sidecar_token_refusals_total counter
token_sidecar_token_refusals_total{outcome="replayed"} 1
# TYPE token_sidecar_token_refresh_consecutive_failures gauge
token_sidecar_token_refresh_consecutive_failures 3
# TYPE token_sidecar_token_refresh_errors_total counter
token_sidecar_token_refresh_errors_total{grant_type="refresh_token",reason="invalid_grant"} 1
# TYPE token_sidecar_token_refreshes_total counter
token_sidecar_token_refreshes_total{grant_type="client_credentials",result="success"} 1
token_sidecar_token_refreshes_total{grant_type="refresh_token",result="rejected"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(withHelp(t, reg, want)), names(want)...); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(m.lastSuccess); got < float64(time.Now().Add(-time.Minute).Unix()) {
		t.Errorf("last success: got %v, want now", got)
	}

	m.TokenScheduled(time.Time{}, time.Unix(1000, 0), 3)
	m.BreakerChanged(false)
	if got := testutil.ToFloat64(m.expiry) + testutil.ToFloat64(m.breakerOpen); got != 0 {
		t.Errorf("without a token and with a closed breaker: got %v, want 0", got)
	}
}

// withHelp puts the help texts into want, which are not what is tested here.
func withHelp(t *testing.T, reg *prometheus.Registry, want string) string {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		want = strings.Replace(want, "# TYPE "+f.GetName()+" ", "# HELP "+f.GetName()+" "+f.GetHelp()+"\n# TYPE "+f.GetName()+" ", 1)
	}
	return want
}

func names(want string) (all []string) {
	for line := range strings.Lines(want) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			all = append(all, strings.Fields(rest)[0])
		}
	}
	return all
}

func TestSeriesAreBoundedWhateverIsSent(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := New(reg, "")
	for i := range 100_000 {
		m.RequestStarted()
		m.RequestServed(fmt.Sprintf("METHOD%d", i), i%1000, time.Millisecond)
		m.RequestStarted()
		m.RequestServed([]string{"GET", "get", "POST", "", "\x00"}[i%5], 200, time.Millisecond)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n > 100 {
		t.Errorf("got %d series, %v", n, err)
	}
}

func TestStatusesThatNobodyRegisteredAreCountedByTheirClass(t *testing.T) {
	m := New(prometheus.NewRegistry(), "")
	for _, status := range []int{299, 520, 530, 599, 499, 503} {
		m.RequestServed("GET", status, time.Millisecond)
	}
	for code, want := range map[string]float64{"2xx": 1, "5xx": 3, "499": 1, "503": 1} {
		if got := testutil.ToFloat64(m.requests.WithLabelValues("GET", code)); got != want {
			t.Errorf("%s: got %v, want %v", code, got, want)
		}
	}
}

func TestStatusesThatDoNotExistAreOurFailure(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := New(reg, "")
	for _, status := range []int{0, 99, 600, 1 << 40, -1} {
		m.RequestServed("GET", status, time.Millisecond)
	}
	if got := testutil.ToFloat64(m.requests.WithLabelValues("GET", "500")); got != 5 {
		t.Errorf("got %v, want 5", got)
	}
}

func TestExpectedSeriesBeginAtZero(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := New(reg, "")
	m.Expect(Labels{[]string{"timeout"}, []string{"past"}, []string{"token_unavailable"}, []string{"replayed"}})
	for _, c := range []prometheus.Collector{m.refusals, m.refreshErrors, m.anomalies, m.failed, m.refreshes} {
		if testutil.CollectAndCount(c) == 0 {
			t.Error("a counter of failures has no series before the first failure")
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	m := New(prometheus.NewRegistry(), "")
	b.ReportAllocs()
	for b.Loop() {
		m.RequestStarted()
		m.RequestServed("POST", 201, time.Millisecond)
	}
}
