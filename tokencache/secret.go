package tokencache

import (
	"fmt"
	"io"
)

const redacted = "REDACTED"

// A Secret is a string that prints as REDACTED whatever prints it: every verb
// of fmt, JSON, zap, a panic. Only Reveal gives it away.
//
// It holds a pointer because fmt cannot call the methods of a value that sits
// in an unexported field: of a string it would print the contents, of a
// pointer it prints the address.
type Secret struct{ p *string }

// NewSecret returns s as a Secret; the Secret of "" is the zero Secret.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal returns the string itself, to put into a request and nowhere else.
func (s Secret) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// IsZero reports whether there is no secret at all.
func (s Secret) IsZero() bool { return s.p == nil }

// Format implements [fmt.Formatter], so that no verb and no flag reaches the string.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// String returns REDACTED, or nothing for the zero Secret.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// MarshalText implements [encoding.TextMarshaler], which JSON, XML and zap use.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
