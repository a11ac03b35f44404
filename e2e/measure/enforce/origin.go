package enforce

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"time"
)

// serveOrigin runs the role of the origin: it sends back what it receives, until its
// standard input ends.
func serveOrigin(in io.Reader, out io.Writer) error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return json.NewEncoder(out).Encode(reply{Error: err.Error()})
	}
	if err := json.NewEncoder(out).Encode(reply{Address: l.Addr().String()}); err != nil {
		return err
	}
	go acceptAll(l)
	_, _ = io.Copy(io.Discard, in) // the connections end with the process
	return nil
}

func acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			// The connection is closed later: a real gateway does not share its
			// processors with the callers and the origin, whose work should not count.
			defer time.AfterFunc(time.Second, func() { _ = conn.Close() })
			buf := make([]byte, 64) // small, because there are thousands of connections
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				if _, err := conn.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}
