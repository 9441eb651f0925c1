package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// An arrival is a request as the origin got it, byte for byte.
type arrival struct {
	method, target, version string
	fields, trailers        []field
	body                    []byte
	whole                   bool  // it came to its end
	fault                   error // it is no request as RFC 9112 has it
}

func (a *arrival) readHead(from *bufio.Reader) error {
	first, err := line(from)
	if err != nil {
		return err
	}
	parts := strings.Split(first, " ")
	if len(parts) != 3 {
		return fmt.Errorf("the request line %q", first)
	}
	a.method, a.target, a.version = parts[0], parts[1], parts[2]
	a.fields, err = readFields(from)
	return err
}

func (a *arrival) readBody(from *bufio.Reader) (err error) {
	defer func() {
		a.whole = err == nil
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil // the client broke off
		}
	}()
	length, chunked := a.value("Content-Length"), a.value("Transfer-Encoding")
	switch {
	case chunked != "" && chunked != "chunked":
		return fmt.Errorf("the transfer coding %q", chunked)
	case chunked != "":
		return a.readChunks(from)
	case length == "":
		return nil
	}
	n, err := strconv.ParseUint(length, 10, 31)
	if err != nil {
		return fmt.Errorf("the length %q", length)
	}
	a.body = make([]byte, min(n, 1<<20))
	n2, err := io.ReadFull(from, a.body)
	a.body = a.body[:n2]
	return err
}

func (a *arrival) readChunks(from *bufio.Reader) error {
	for {
		size, err := line(from)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil {
			return fmt.Errorf("the chunk size %q", size)
		}
		if n == 0 {
			a.trailers, err = readFields(from)
			return err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(from, chunk); err != nil {
			return err
		}
		a.body = append(a.body, chunk...)
		if end, err := line(from); err != nil || end != "" {
			return fmt.Errorf("a chunk that ends in %q: %w", end, err)
		}
	}
}

// values returns all values of a field.
func (a *arrival) values(name string) (values []string) {
	for _, f := range a.fields {
		if strings.EqualFold(f.name, name) {
			values = append(values, f.value)
		}
	}
	return values
}

func (a *arrival) value(name string) string { return strings.Join(a.values(name), ", ") }

type field struct{ name, value string }

// line reads up to CRLF, and nothing else for the end of a line.
func line(from *bufio.Reader) (string, error) {
	text, err := from.ReadString('\n')
	if err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(text, "\r\n")
	if !ok || strings.ContainsAny(text, "\r\x00") {
		return "", fmt.Errorf("the line %q", text)
	}
	return text, nil
}

func readFields(from *bufio.Reader) ([]field, error) {
	var fields []field
	for {
		text, err := line(from)
		if err != nil || text == "" {
			return fields, err
		}
		name, value, ok := strings.Cut(text, ":")
		if !ok {
			return fields, fmt.Errorf("the field line %q", text)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
}
