// Package cluster tests the chart, the image and the examples on a real
// Kubernetes: .ci/kubernetes/node starts one, with the images in it, and runs
//
//	go test -run 'Lifecycle|Installed' ./.ci/cluster
//
// Each script has a namespace of its own, which enforces the Pod Security
// standard "restricted", with the quickstart's demo served at http://demo.
package cluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestLifecycle installs and removes the chart, so it has the cluster to itself.
func TestLifecycle(t *testing.T) { run(t, "testdata/lifecycle") }

// TestInstalled is what users do once the chart is installed.
func TestInstalled(t *testing.T) {
	helm(t, "install", "token-sidecar", "../../charts/token-sidecar", "--namespace", "token-sidecar", "--create-namespace", "--wait",
		"--set", "image.repository=localhost/token-sidecar,image.tag=dev,image.pullPolicy=Never")
	defer helm(t, "uninstall", "token-sidecar", "--namespace", "token-sidecar", "--wait")
	run(t, "testdata/installed")
}

// TestOldest needs no more than the API server of the oldest Kubernetes that
// the chart supports: .ci/kubernetes/apiserver starts it.
func TestOldest(t *testing.T) { run(t, "testdata/oldest") }

func helm(t *testing.T, args ...string) {
	if output, err := exec.Command("helm", args...).CombinedOutput(); err != nil {
		t.Fatalf("helm %v: %v\n%s", args, err, output)
	}
}

func run(t *testing.T, folder string) {
	t.Run(filepath.Base(folder), func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:   folder,
			Setup: setup,
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"eventually": eventually, "example": example,
			},
		})
	})
}

const patience = 2 * time.Minute

func setup(e *testscript.Env) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	kubectlPath, err := exec.LookPath("kubectl")
	if err != nil {
		return err
	}
	namespace := strings.TrimPrefix(filepath.Base(e.WorkDir), "script-")
	config, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		return fmt.Errorf("KUBECONFIG: %w: run this by .ci/kubernetes/node", err)
	}
	inNamespace := strings.Replace(string(config), "context: {", "context: {namespace: "+namespace+", ", 1)
	kubeconfig := filepath.Join(e.WorkDir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(inNamespace), 0o600); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"KUBECONFIG": kubeconfig, "NAMESPACE": namespace, "HELM_NAMESPACE": namespace, "HOME": e.WorkDir, "PATH": os.Getenv("PATH"), "CONTAINERD_NAMESPACE": "k8s.io",
		"CRDS": filepath.Join(kubectlPath, "../../crds"), "ROOT": root,
		"CHART": filepath.Join(root, "charts/token-sidecar"), "MANIFESTS": filepath.Join(root, ".ci/cluster/testdata"),
	} {
		e.Setenv(name, value)
	}
	kubectl := func(args ...string) error {
		output, err := exec.Command("kubectl", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("kubectl %v: %w\n%s", args, err, output)
		}
		return err
	}
	e.Defer(func() { _ = kubectl("delete", "namespace", namespace, "--wait=false") })
	if err := kubectl("create", "namespace", namespace); err != nil {
		return err
	}
	return kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
}

// eventually COMMAND ARG... runs a command until it succeeds; with "stdout
// PATTERN --" before it, until it also prints what matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("there is no ! eventually")
	}
	pattern := regexp.MustCompile("")
	if args[0] == "stdout" {
		pattern = regexp.MustCompile("(?m)" + args[1])
		args = args[3:]
	}
	deadline := time.Now().Add(patience)
	for output, err := quietly(ts, args); err != nil || !pattern.Match(output); output, err = quietly(ts, args) {
		if time.Now().After(deadline) {
			ts.Check(ts.Exec(args[0], args[1:]...))
			ts.Fatalf("this has lasted for %v", patience)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// quietly runs a command as exec does, but does not log it.
func quietly(ts *testscript.TestScript, args []string) ([]byte, error) {
	command := exec.Command(args[0], args[1:]...)
	command.Dir = ts.MkAbs(".")
	for _, name := range []string{"KUBECONFIG", "PATH", "HOME", "NAMESPACE", "KINDS"} {
		command.Env = append(command.Env, name+"="+ts.Getenv(name))
	}
	return command.Output()
}

// example FILE applies a manifest of examples/kubernetes, with the images that
// this cluster has.
func example(ts *testscript.TestScript, _ bool, args []string) {
	manifest := ts.ReadFile(filepath.Join(ts.Getenv("ROOT"), "examples/kubernetes", args[0]))
	images := map[string]string{`ghcr.io/token-sidecar/token-sidecar:\S+?("?\n)`: "localhost/token-sidecar:dev$1", `docker.io/curlimages/curl:\S+`: "localhost/app:dev"}
	for pattern, image := range images {
		manifest = regexp.MustCompile(pattern).ReplaceAllString(manifest, image)
	}
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, []byte(manifest), 0o600))
	ts.Check(ts.Exec("kubectl", "apply", "-f", path))
}
