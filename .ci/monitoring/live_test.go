package monitoring

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

var binary string // of the sidecar

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "monitoring")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(folder, "token-sidecar")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../../cmd/token-sidecar")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// launch runs a program until the test ends, and returns what the first line
// of its log that matches has in its parentheses.
func launch(t *testing.T, command *exec.Cmd, line string) []string {
	t.Helper()
	log, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		reading.Wait()
		_ = command.Wait()
	})
	pattern, found := regexp.MustCompile(line), make(chan []string, 1)
	reading.Go(func() {
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			if match := pattern.FindStringSubmatch(lines.Text()); match != nil && len(found) == 0 {
				found <- match[1:]
			}
		}
	})
	select {
	case match := <-found:
		return match
	case <-time.After(30 * time.Second):
		t.Fatalf("%s has not logged %s", command, line)
		return nil
	}
}

type sidecar struct{ url, admin string }

// startSidecar runs the binary before an API that also has /answer/401 and the
// like, which answer so whatever the token.
func startSidecar(t *testing.T, provider *granttest.Server) sidecar {
	mux := http.NewServeMux()
	mux.Handle("/", provider)
	mux.HandleFunc("/answer/{status}", func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.PathValue("status"))
		w.WriteHeader(status)
	})
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	command := exec.Command(binary)
	command.Env = []string{"UPSTREAM_URL=" + web.URL, "TOKEN_URL=" + web.URL + "/oauth/token",
		"CLIENT_ID=client", "CLIENT_SECRET=secret", "LISTEN_ADDRESS=127.0.0.1:0", "ADMIN_ADDRESS=127.0.0.1:0"}
	at := launch(t, command, `is listening.*"address":"(.*?)","admin_address":"(.*?)"`)
	s := sidecar{"http://" + at[0], "http://" + at[1]}
	eventually(t, "the sidecar is ready", func() bool { return status(s.admin+"/readyz") == http.StatusOK })
	return s
}

// use sends requests that have every kind of answer that alerts ask for.
func (s sidecar) use() {
	for _, path := range []string{"/orders", "/answer/401", "/answer/503"} {
		_ = status(s.url + path)
	}
}

func status(url string) int {
	resp, err := http.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

// exposition is what Prometheus scrapes from a sidecar that has been used.
func exposition(t *testing.T) []byte {
	s := startSidecar(t, &granttest.Server{})
	s.use()
	resp, err := http.Get(s.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// targetLabels are those that Prometheus adds, and operators give it.
var targetLabels = []string{"namespace", "pod", "container", "job", "instance"}

type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus scrapes and evaluates every second. Alerts fire at once:
// how long they wait is tested elsewhere.
func startPrometheus(t *testing.T, target string) prometheus {
	folder := t.TempDir()
	atOnce := regexp.MustCompile(`\bfor: \w+`).ReplaceAllString(read(t, alertsFile), "for: 0s")
	write(t, filepath.Join(folder, "alerts.yaml"), atOnce)
	write(t, filepath.Join(folder, "prometheus.yaml"), fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [alerts.yaml]
scrape_configs:
  - job_name: sidecar
    static_configs: [{targets: [%s], labels: {namespace: shop, pod: app, container: token-sidecar}}]
`, strings.TrimPrefix(target, "http://")))
	command := exec.Command("prometheus", "--config.file", filepath.Join(folder, "prometheus.yaml"),
		"--storage.tsdb.path", filepath.Join(folder, "data"), "--web.listen-address", "127.0.0.1:0")
	p := prometheus{t, "http://" + launch(t, command, `Listening on" address=(\S+)`)[0]}
	eventually(t, "Prometheus is ready", func() bool { return status(p.url+"/-/ready") == http.StatusOK })
	return p
}

// query returns the labels of each series of the result.
func (p prometheus) query(expr string) (all []map[string]string) {
	var data struct {
		Result []struct{ Metric map[string]string }
	}
	p.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	for _, series := range data.Result {
		all = append(all, series.Metric)
	}
	return all
}

// firing returns the annotations of an alert, if it fires.
func (p prometheus) firing(alert string) map[string]string {
	var data struct {
		Alerts []struct {
			State               string
			Labels, Annotations map[string]string
		}
	}
	p.get("/api/v1/alerts", &data)
	for _, a := range data.Alerts {
		if a.State == "firing" && a.Labels["alertname"] == alert {
			return a.Annotations
		}
	}
	return nil
}

func (p prometheus) get(path string, data any) {
	p.t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer := struct {
		Data  any
		Error string
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Error != "" {
		p.t.Fatal(path, err, answer.Error)
	}
}

func TestAnOutageIsSeenComingAndGoing(t *testing.T) {
	t.Parallel()
	provider := &granttest.Server{Life: 4 * time.Second}
	s := startSidecar(t, provider)
	p := startPrometheus(t, s.admin)
	sendUntilTheEnd(t, s)
	eventually(t, "the sidecar is scraped", func() bool { return p.query("token_sidecar_build_info") != nil })

	const alert = "TokenSidecarNoValidToken"
	if p.firing(alert) != nil {
		t.Errorf("%s fires while all is well", alert)
	}
	provider.Always(granttest.Status(http.StatusInternalServerError, ""))
	var annotations map[string]string
	eventually(t, alert+" fires", func() bool { annotations = p.firing(alert); return annotations != nil })
	if summary := annotations["summary"]; summary != "shop/app holds no valid token." {
		t.Errorf("it says %q", summary)
	}
	provider.Always(nil)
	eventually(t, alert+" is over", func() bool { return p.firing(alert) == nil })

	legendLabel := regexp.MustCompile(`{{(\w+)}}`)
	for _, q := range dashboardQueries(t) {
		var result []map[string]string
		eventually(t, q.where+" shows something", func() bool { result = p.query(q.expr); return len(result) > 0 })
		for _, label := range legendLabel.FindAllStringSubmatch(q.legend, -1) {
			if result[0][label[1]] == "" {
				t.Errorf("%s: the legend %q names a label that the result has not: %v", q.where, q.legend, result[0])
			}
		}
	}
}

func sendUntilTheEnd(t *testing.T, s sidecar) {
	ctx, stop := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	t.Cleanup(func() { stop(); sending.Wait() })
	sending.Go(func() {
		for ctx.Err() == nil {
			s.use()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// promtool runs Debian's promtool, and returns what it says.
func promtool(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	command := exec.Command("promtool", args...)
	command.Stdin = bytes.NewReader(stdin)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}
