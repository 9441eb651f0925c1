package main

import (
	"fmt"
	"io"
)

func printHelp(w io.Writer) {
	fmt.Fprint(w, `Adds OAuth 2.0 bearer tokens to the requests of an app that cannot.

Usage: token-sidecar            run, configured by the environment
       token-sidecar probe [PATH or URL]
                                exit with 0 if a GET is answered with success;
                                by default of /readyz on ADMIN_ADDRESS
       token-sidecar version    print the version
       token-sidecar help       print this

Variables:
`)
	for _, v := range variables() {
		fmt.Fprintf(w, "  %s", v.name)
		if v.defaultValue != "" {
			fmt.Fprintf(w, " (default %s)", v.defaultValue)
		}
		fmt.Fprintf(w, "\n      %s\n", v.help)
	}
	fmt.Fprint(w, `
GOMAXPROCS, GOGC and GOMEMLIMIT are Go's own; where they are not set the
sidecar uses one processor and a garbage collector that suits its size.
`)
}
