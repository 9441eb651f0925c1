package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/caarlos0/env/v11"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

// faults are what is wrong with a configuration, by variable. The first fault
// of a variable stands.
type faults map[string]string

func (f faults) add(name, fault string) { f[name] = cmp.Or(f[name], fault) }

func (f faults) unless(ok bool, name, fault string) {
	if !ok {
		f.add(name, fault)
	}
}

// secretFrom reads the file that a variable names.
func (f faults) secretFrom(path, name string) tokencache.Secret {
	secret, err := readSecret(path)
	f.unless(err == nil, name, fmt.Sprint(err))
	f.unless(!quoted(secret.Reveal()), name, path+" "+inQuotes)
	return secret
}

// addParseErrors takes over what package env found, under the names that
// users know.
func (f faults) addParseErrors(err error) {
	aggregate, _ := errors.AsType[env.AggregateError](err)
	for _, err := range aggregate.Errors {
		if e, ok := errors.AsType[env.ParseError](err); ok {
			f.add(variableOf(e.Name), e.Err.Error())
			continue
		}
		f.add("environment", err.Error())
	}
}

func (f faults) err() error {
	if len(f) == 0 {
		return nil
	}
	return &configError{fmt.Sprintf("faults in the configuration (%d):\n  %s\nRun token-sidecar help for every variable.", len(f), strings.Join(f.lines(), "\n  "))}
}

func (f faults) lines() (lines []string) {
	for _, v := range variables() {
		if fault, ok := f[v.name]; ok {
			lines = append(lines, v.name+": "+fault)
		}
	}
	if fault, ok := f["environment"]; ok {
		lines = append(lines, fault)
	}
	return lines
}

// A configError is answered with exit code 2.
type configError struct{ text string }

func (e *configError) Error() string { return e.text }
