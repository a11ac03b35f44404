package h2_test

import (
	"io"
	"net"
	"testing"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// run runs one end of a connection, and returns it with a function that waits for its end.
// A server first waits for the preface of its client.
func run(t *testing.T, cfg h2.Config, conn net.Conn) (*h2.Conn, func()) {
	t.Helper()
	if !cfg.Client {
		if _, err := io.ReadFull(conn, make([]byte, len(h2.Preface))); err != nil {
			t.Fatal(err)
		}
	}
	link, err := tunnel.NewLink(conn)
	if err != nil {
		t.Fatal(err)
	}
	c, done := h2.New(cfg, link), make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(t.Context(), nil)
	}()
	return c, func() { <-done }
}

// TestWholeAnswerSurvivesItsReset checks that a client can read an answer that ended before
// the server reset the stream with NO_ERROR, because it needed no more of the request.
func TestWholeAnswerSurvivesItsReset(t *testing.T) {
	const answer = "the whole answer"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, ended := run(t, h2.Config{Client: true}, near)
	_, served := run(t, h2.Config{Serve: func(s *h2.Stream, _ h2.Head) func() {
		_ = s.Respond([]h2.Field{{Name: ":status", Value: "200"}}, []byte(answer))
		return nil
	}}, far)
	s, err := client.Open(t.Context(), []h2.Field{{Name: ":method", Value: "POST"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Answer(t.Context()); err != nil {
		t.Fatal(err)
	}
	for { // until the reset has come
		if _, err := s.Write([]byte("more")); err != nil {
			break
		}
	}
	if got, err := io.ReadAll(s); string(got) != answer || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	client.Close()
	ended()
	served()
}
