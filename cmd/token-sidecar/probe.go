package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// probe asks a running sidecar how it is, for images that hold nothing else
// to ask with: exec probes, health checks, tests. Its target is a URL, or a
// path on ADMIN_ADDRESS. What is answered is copied to stdout.
func probe(environ map[string]string, args []string, stdout io.Writer) error {
	if len(args) > 1 {
		return &configError{"probe takes one path or URL"}
	}
	target := "/readyz"
	if len(args) == 1 {
		target = args[0]
	}
	if strings.HasPrefix(target, "/") {
		host, err := adminHost(environ)
		if err != nil {
			return err
		}
		target = "http://" + host + target
	}
	if u, err := url.Parse(target); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &configError{"probe takes a path, such as /readyz, or a URL that begins with http:// or https://"}
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	resp, err := client.Get(target)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(stdout, resp.Body); err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s answered %s", target, resp.Status)
	}
	return nil
}

// adminHost is where ADMIN_ADDRESS can be reached from within the container.
func adminHost(environ map[string]string) (string, error) {
	cfg, _ := loadConfig(environ) // its faults are for the sidecar to tell
	host, port, err := net.SplitHostPort(cfg.AdminAddress)
	if err != nil {
		return "", &configError{"ADMIN_ADDRESS: want host:port, such as 127.0.0.1:9090"}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}
