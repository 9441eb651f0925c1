package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

func fields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d:\r\n", i)
	}
	return b.String()
}

// The limit holds however the head comes, and whatever came before it.
func TestAHeadHasSoManyFieldsAtMost(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: localhost\r\n"
	most, tooMany := fields(maxFields-1), fields(maxFields)
	body := strings.Repeat("line\n\n", 1000)
	post := fmt.Sprintf("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	chunked := "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\n\n\r\n", 1000) + "0\r\n\r\n"
	short := "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n" + strings.Repeat("a\n", 200)
	for name, test := range map[string]struct{ says, answers string }{
		"as many as may be":          {get + most + "\r\n", "200"},
		"one more":                   {get + tooMany + "\r\n", "431"},
		"one more, without an end":   {get + tooMany, "431"},
		"a second head":              {get + "\r\n" + get + tooMany, "200 431"},
		"every head":                 {get + most + "\r\n" + get + most + "\r\n" + get + most + "\r\n", "200 200 200"},
		"lines of a body":            {post + get + "\r\n", "200 200"},
		"lines of chunks":            {chunked + get + "\r\n", "200 200"},
		"behind a body":              {post + get + fields(3*maxFields), "200 431"},
		"lines of many bodies":       {strings.Repeat(short, 100) + get + most + "\r\n", strings.TrimSpace(strings.Repeat("200 ", 101))},
		"behind an empty line":       {post + "\r\n\r\n" + get + fields(3*maxFields), "200 431"},
		"an empty line by CR alone":  {get + "\r\r\n" + fields(5000), "400"},
		"folded lines":               {get + "a: b\r\n" + strings.Repeat(" c\r\n", 5000), "431"},
		"lines without CR":           {strings.ReplaceAll(get+tooMany, "\r", ""), "431"},
		"the preface of HTTP/2 cut":  {"PRI * HTTP/2.0\r\n" + fields(5000), "431"},
		"a preface behind a request": {get + "\r\n" + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + get + tooMany, "200 405"},
	} {
		t.Run(name, func(t *testing.T) {
			r := runApp(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, "LISTEN_HTTP2=true")
			for way, write := range map[string]func(io.Writer, string){"at once": atOnce, "in small pieces": inPieces} {
				if got := r.answersTo(t, test.says, write); got != test.answers && !strings.HasPrefix(got, test.answers+" ") {
					t.Errorf("%s: answered %s, want %s", way, got, test.answers)
				}
			}
			r.ends(t)
		})
	}
}

func atOnce(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func inPieces(w io.Writer, text string) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, iotest.HalfReader(iotest.HalfReader(strings.NewReader(text))), make([]byte, 37))
}

// answersTo returns the status of each answer, until there are no more.
func (r *running) answersTo(t *testing.T, says string, write func(io.Writer, string)) string {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		write(conn, says)
		if !strings.Contains(says, "\r\n\r\n") {
			return // it has to be refused as it is
		}
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	var all []string
	from := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(from, nil)
		if err != nil {
			return strings.Join(all, " ")
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		all = append(all, fmt.Sprint(resp.StatusCode))
	}
}

func TestARequestOfHTTP2HasSoManyFieldsAtMost(t *testing.T) {
	r := runApp(t, func(http.ResponseWriter, *http.Request) {}, "LISTEN_HTTP2=true")
	client := r.http2(t)
	for n, want := range map[int]int{maxFields: http.StatusOK, maxFields + 1: http.StatusRequestHeaderFieldsTooLarge, 12 * maxFields: http.StatusRequestHeaderFieldsTooLarge} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "") // none
		for i := range n - 1 {           // and Accept-Encoding, by the Transport
			req.Header.Set(fmt.Sprint("A", i), "")
		}
		req.Header.Set("Accept-Encoding", "identity")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d fields: answered %s, want %d", n, resp.Status, want)
		}
	}
	client.CloseIdleConnections()
	r.ends(t)
}

func TestTheAdminPortTakesSoManyFieldsAtMost(t *testing.T) {
	r := runApp(t, func(http.ResponseWriter, *http.Request) {})
	r.address = r.admin
	if got := r.answersTo(t, "GET /livez HTTP/1.1\r\nHost: localhost\r\n"+fields(maxFields), atOnce); got != "431" {
		t.Errorf("answered %s", got)
	}
	r.ends(t)
}
