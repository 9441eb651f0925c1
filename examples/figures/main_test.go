package main

import (
	"strings"
	"testing"
)

// The quick figures run with every test run, so that the program keeps up with
// the sidecar it measures.
func TestTheQuickFiguresMeetTheirBars(t *testing.T) {
	chosen, err := choose(figures(0), []string{"revoked", "cold"})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if !measureAll(t.Context(), &out, chosen) {
		t.Error("a bar was missed")
	}
	t.Log("\n" + out.String())
	for _, name := range []string{"revoked", "cold-start"} {
		if !strings.Contains(out.String(), "pass  "+name+" ") {
			t.Errorf("no word that %s passed", name)
		}
	}
}

func TestAMissedBarAndAnUnknownNameAreTold(t *testing.T) {
	var r result
	atMost(&r, "errors", 0, 0)
	if r.verdict() != "pass" {
		t.Errorf("at the bar: got %s", r.verdict())
	}
	atLeast(&r, "rotations", 199, 200)
	if got := r.verdict() + " " + r.String(); got != "FAIL errors 0 (at most 0), rotations 199 (at least 200)" {
		t.Errorf("got %q", got)
	}
	if _, err := choose(figures(0), []string{"no-such"}); err == nil {
		t.Error("an unknown name was accepted")
	}
}
