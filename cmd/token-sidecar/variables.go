package main

import (
	"reflect"
	"slices"
	"strings"
)

// A variable documents itself: its name, default and meaning.
type variable struct {
	field, name, defaultValue, help string
	secret                          bool // it is taken out of the environment
}

// variables lists the configuration in the order of the struct.
func variables() []variable {
	var all []variable
	for field := range reflect.TypeFor[config]().Fields() {
		name, option, _ := strings.Cut(field.Tag.Get("env"), ",")
		if name == "" {
			continue
		}
		all = append(all, variable{field.Name, name, field.Tag.Get("envDefault"), field.Tag.Get("help"), option == "unset"})
	}
	return all
}

// proxyVariables may hold a password as well; they count if TOKEN_PROXY_URL or
// UPSTREAM_PROXY_URL says so.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"}

func secretVariables() []string {
	names := slices.Clone(proxyVariables)
	for _, v := range variables() {
		if v.secret {
			names = append(names, v.name)
		}
	}
	return names
}

func variableOf(field string) string {
	all := variables()
	return all[slices.IndexFunc(all, func(v variable) bool { return v.field == field })].name
}
