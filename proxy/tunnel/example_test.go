package tunnel_test

import (
	"fmt"
	"io"
	"net"

	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// A tunnel relays between a client and an upstream until both have ended, and counts
// what it has relayed. Bytes that the client sent early go first.
func Example() {
	client, accepted := connected()
	dialled, upstream := connected()
	defer func() { _ = client.Close() }()

	// The client sends its question and closes its half of the connection.
	_, _ = io.WriteString(client, "how are you?")
	_ = client.CloseWrite()
	// The upstream answers the question, and ends.
	go func() {
		question, _ := io.ReadAll(upstream)
		_, _ = fmt.Fprintf(upstream, "I was asked %q", question)
		_ = upstream.Close()
	}()

	t := tunnel.New(tunnel.Wrap(accepted), dialled, tunnel.Config{})
	result := t.Run([]byte("Hello, "))

	answer, _ := io.ReadAll(client)
	fmt.Println(string(answer))
	fmt.Println(result.Up, "bytes up,", result.Down, "down, ended first:", result.Reason)

	// Output:
	// I was asked "Hello, how are you?"
	// 19 bytes up, 33 down, ended first: client
}

// Close ends a tunnel early, with a reason that the result and records contain.
func ExampleTunnel_Close() {
	client, accepted := connected()
	dialled, upstream := connected()
	defer func() { _, _ = client.Close(), upstream.Close() }()
	t := tunnel.New(tunnel.Wrap(accepted), dialled, tunnel.Config{})

	ended := make(chan tunnel.Result)
	go func() { ended <- t.Run(nil) }()
	t.Close(tunnel.Revoked)
	fmt.Println((<-ended).Reason)

	// Output:
	// revoked
}

// connected returns the two ends of a connection.
func connected() (dialled, accepted *net.TCPConn) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	defer func() { _ = l.Close() }()
	if dialled, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil {
		panic(err)
	}
	if accepted, err = l.AcceptTCP(); err != nil {
		panic(err)
	}
	return dialled, accepted
}
