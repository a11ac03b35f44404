package tunnel

import (
	"errors"
	"io"
	"net"
	"testing"
)

// TestGreetingIsBounded checks that each half of a greeting is bounded by Most, that
// Enter is called once, before the first byte beyond Free is read, and that nothing is
// counted after the greeting.
func TestGreetingIsBounded(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_, _ = io.Copy(io.Discard, server)
	}()
	asked, read := 0, 0
	conn := Wrap(&readerConn{Conn: client, Reader: zeros{}})
	conn.Greet(&Greeting{Free: 10, Most: 25, Enter: func() error {
		if asked++; read != 10 {
			t.Errorf("asked to enter after %d bytes", read)
		}
		return nil
	}})
	all := func() error {
		for {
			n, err := conn.Read(make([]byte, 7))
			if read += n; err != nil {
				return err
			}
		}
	}
	if err := all(); !errors.Is(err, ErrGreetingTooLong) || read != 25 || asked != 1 {
		t.Errorf("read %d, asked %d times, %v", read, asked, err)
	}
	read = 0
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := all(); !errors.Is(err, ErrGreetingTooLong) || read != 25 || asked != 1 {
		t.Errorf("after the first write: read %d, asked %d times, %v", read, asked, err)
	}
	if _, err := conn.Write([]byte("x")); err != nil { // a second write does not begin another half
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, ErrGreetingTooLong) {
		t.Errorf("after the second write: read %d, %v", n, err)
	}
	conn.Greet(nil)
	if n, err := conn.Read(make([]byte, 100)); n != 100 || err != nil {
		t.Errorf("after it: read %d, %v", n, err)
	}
	denied := errors.New("denied")
	conn.Greet(&Greeting{Free: 10, Most: 25, Enter: func() error { return denied }})
	read = 0
	if err := all(); !errors.Is(err, denied) || read != 10 {
		t.Errorf("denied: read %d, %v", read, err)
	}
}

// readerConn is a connection whose bytes come from Reader.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c *readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
