package proxy

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

func TestThisPackageStaysIndependentOf(t *testing.T) {
	const module = "github.com/token-sidecar/token-sidecar/"
	out, err := exec.Command("go", "list", "-json=Imports", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	var this struct{ Imports []string }
	if err := json.Unmarshal(out, &this); err != nil || len(this.Imports) == 0 {
		t.Fatalf("%v in %s", err, out)
	}
	for _, path := range this.Imports {
		for _, other := range []string{module + "tokencache", module + "metrics", module + "cmd", "github.com/prometheus", "golang.org/x/oauth2"} {
			if strings.HasPrefix(path+"/", other+"/") {
				t.Error(path)
			}
		}
	}
}
