package front_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/front"
)

// TestLocalAnswerIsWrittenAsGiven checks the status, fields and body of an answer that the
// gateway itself gives, and when another request may follow it.
func TestLocalAnswerIsWrittenAsGiven(t *testing.T) {
	const old = "GET http://a.example/ HTTP/1.0\r\n\r\n"
	head := "HEAD" + strings.TrimPrefix(plain, "GET")
	body := strings.Replace(plain, "GET", "POST", 1)
	body = strings.Replace(body, "\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n", 1)
	for _, row := range []struct {
		name, raw, body string
		last, keeps     bool
	}{
		{"GET", plain, "no\n", false, true},
		{"HEAD", head, "", false, true},
		{"the last answer", plain, "no\n", true, false},
		{"HTTP/1.0", old, "no\n", false, false},
		{"a body that nobody has read", body, "no\n", false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := askOnce(t, row.raw, front.Answer{Kind: front.Local, Last: row.last, Response: front.Response{
				Status: http.StatusMethodNotAllowed, Fields: http.Header{"Allow": {"GET, POST"}}, Body: []byte("no\n"),
			}}, row.keeps)
			if a.Status != "405 Method Not Allowed" || a.Header.Get("Allow") != "GET, POST" || a.ContentLength != 3 {
				t.Errorf("answered %s %v", a.Status, a.Header)
			}
			if a.body != row.body || a.Close == row.keeps {
				t.Errorf("answered %q, and to keep the connection: %v", a.body, !a.Close)
			}
		})
	}
}
