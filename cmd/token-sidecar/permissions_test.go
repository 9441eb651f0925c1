package main

import (
	"maps"
	"strings"
	"testing"
)

// What exposes credentials is refused, unless it is permitted by the one
// variable that its refusal names.
func TestWhatExposesCredentialsIsRefusedUnlessPermitted(t *testing.T) {
	good := map[string]string{
		"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "https://auth.test/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s",
	}
	const plain, remote = "ALLOW_PLAIN_HTTP", "ALLOW_REMOTE_CLIENTS"
	for _, tt := range []struct{ name, value, permission string }{ // no permission: it needs none
		{"TOKEN_URL", "http://auth.test/token", plain},
		{"REFRESH_URL", "http://auth.test/token", plain},
		{"REVOCATION_URL", "http://auth.test/revoke", plain},
		{"UPSTREAM_URL", "http://api.test", plain},
		{"UPSTREAM_URL", "http://10.0.0.1", plain},
		{"UPSTREAM_URL", "http://localhost.api.test", plain},
		{"UPSTREAM_URL", "http://127.0.0.1.api.test", plain},
		{"UPSTREAM_URL", "http://0.0.0.0:8080", plain},
		{"UPSTREAM_URL", "http://[fe80::1]:8080", plain},
		{"UPSTREAM_URL", "http://localhost", ""},
		{"UPSTREAM_URL", "http://LocalHost:8080/v1", ""},
		{"UPSTREAM_URL", "http://127.8.9.10:8080", ""},
		{"UPSTREAM_URL", "http://[::1]:8080", ""},
		{"UPSTREAM_URL", "http://[::ffff:127.0.0.1]:8080", ""},
		{"TOKEN_URL", "http://127.0.0.1/token", ""},

		{"LISTEN_ADDRESS", ":8080", remote},
		{"LISTEN_ADDRESS", "0.0.0.0:8080", remote},
		{"LISTEN_ADDRESS", "[::]:8080", remote},
		{"LISTEN_ADDRESS", "10.0.0.1:8080", remote},
		{"LISTEN_ADDRESS", "sidecar:8080", remote},
		{"LISTEN_ADDRESS", "localhost:8080", ""},
		{"LISTEN_ADDRESS", "127.0.0.2:8080", ""},
		{"LISTEN_ADDRESS", "[::1]:8080", ""},
		{"ADMIN_ADDRESS", ":9090", ""},
	} {
		environ := maps.Clone(good)
		environ[tt.name] = tt.value
		_, err := loadConfig(environ)
		if tt.permission == "" {
			if err != nil {
				t.Errorf("%s=%s: got %v", tt.name, tt.value, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "(1):\n  "+tt.name+": ") || !strings.Contains(err.Error(), tt.permission+"=true") {
			t.Errorf("%s=%s: got %v", tt.name, tt.value, err)
		}
		other := map[string]string{plain: remote, remote: plain}[tt.permission]
		environ[other] = "true"
		if _, err := loadConfig(environ); err == nil {
			t.Errorf("%s=%s is permitted by %s", tt.name, tt.value, other)
		}
		environ[tt.permission] = "true"
		if _, err := loadConfig(environ); err != nil {
			t.Errorf("%s=%s with %s: got %v", tt.name, tt.value, tt.permission, err)
		}
	}
}

// What is sent to loopback by a proxy elsewhere goes over the network.
func TestAProxyElsewhereTakesPlainHTTPOffTheMachine(t *testing.T) {
	for proxy, permitted := range map[string]bool{
		"http://proxy.test:3128": false, "https://proxy.test": false, "http://127.0.0.1:3128": true, "environment": true,
	} {
		_, err := loadConfig(map[string]string{
			"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "http://localhost/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s",
			"TOKEN_PROXY_URL": proxy,
		})
		if (err == nil) != permitted {
			t.Errorf("TOKEN_PROXY_URL=%s: got %v", proxy, err)
		}
	}
}
