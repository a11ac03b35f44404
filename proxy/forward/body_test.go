package forward

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/head"
)

// deadlines is a client that counts how often a deadline is set.
type deadlines struct {
	net.Conn
	set int
}

// SetReadDeadline implements net.Conn.
func (d *deadlines) SetReadDeadline(time.Time) error { d.set++; return nil }

// TestStoppedBodyDoesNotUseTheClient checks that a read after stop neither reads from the
// client nor sets its deadline. The transport may still call Read then.
func TestStoppedBodyDoesNotUseTheClient(t *testing.T) {
	client := new(deadlines)
	r := &run{
		Exchange: &Exchange{Head: new(head.Head), Client: client, Body: 2},
		cfg:      &Config{Body: time.Minute}, done: make(chan struct{}),
		upstream: &upstream{closed: make(chan struct{})},
	}
	text := strings.NewReader("hi")
	b := newRequestBody(r, &http.Request{Body: io.NopCloser(text)})
	if n, err := b.Read(make([]byte, 1)); n != 1 || err != nil || client.set != 1 {
		t.Errorf("%d bytes, %v, %d deadlines", n, err, client.set)
	}
	if b.stop() {
		t.Error("a body that was not read to its end is done")
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errStopped) || client.set != 1 || b.failure() != nil {
		t.Errorf("%d bytes, %v, %d deadlines, failure %v", n, err, client.set, b.failure())
	}
}
