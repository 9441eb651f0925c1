package main

import (
	"fmt"
	"strings"
	"time"
)

// A result is what a figure's line says.
type result struct {
	readings []reading
	skipped  string // why nothing was measured
	broken   error  // why nothing can be said
}

// A reading is one number, with its bar if it has one.
type reading struct {
	what, value, bar string
	missed           bool
}

type number interface{ int | float64 | time.Duration }

// atMost adds a number that must not be above limit.
func atMost[N number](r *result, what string, got, limit N) {
	r.readings = append(r.readings, reading{what, show(got), "at most " + show(limit), got > limit})
}

// atLeast adds a number that must not be below limit.
func atLeast[N number](r *result, what string, got, limit N) {
	r.readings = append(r.readings, reading{what, show(got), "at least " + show(limit), got < limit})
}

// exactly adds a number that must be want.
func exactly[N number](r *result, what string, got, want N) {
	r.readings = append(r.readings, reading{what, show(got), "exactly " + show(want), got != want})
}

// note adds what puts the other numbers into proportion.
func (r *result) note(what string, value any) {
	r.readings = append(r.readings, reading{what: what, value: show(value)})
}

func (r *result) met() bool {
	for _, reading := range r.readings {
		if reading.missed {
			return false
		}
	}
	return r.broken == nil
}

func (r *result) verdict() string {
	switch {
	case !r.met():
		return "FAIL"
	case r.skipped != "":
		return "skip"
	}
	return "pass"
}

func (r result) String() string {
	var parts []string
	for _, reading := range r.readings {
		part := reading.what + " " + reading.value
		if reading.bar != "" {
			part += " (" + reading.bar + ")"
		}
		parts = append(parts, part)
	}
	if r.skipped != "" {
		parts = append(parts, r.skipped)
	}
	if r.broken != nil {
		parts = append(parts, "not measured: "+r.broken.Error())
	}
	return strings.Join(parts, ", ")
}

func show(value any) string {
	switch v := value.(type) {
	case time.Duration:
		return v.Round(time.Millisecond).String()
	case float64:
		return fmt.Sprintf("%.3g", v)
	}
	return fmt.Sprint(value)
}
