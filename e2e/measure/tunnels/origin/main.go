// Command origin is the destination of the benchmark's tunnels. It has three services
// over plain TCP on loopback, in this order.
//
//   - echo sends back what it receives.
//   - source reads a count of 8 bytes, big endian, and sends that many bytes.
//   - sink reads such a count and as many bytes, and sends the count back.
//
// Each closes its side when it is done and the client has closed its own.
package main

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
)

// chunk is the size of a write and a read, in bytes.
const chunk = 64 << 10

func main() {
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var serving sync.WaitGroup
	for _, service := range []func(net.Conn) error{echo, source, sink} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			log.Error("listening", slog.Any("error", err))
			os.Exit(2)
		}
		log.Info("listening", slog.String("address", l.Addr().String()))
		serving.Go(func() { log.Error("accepting", slog.Any("error", serve(l, service))) })
	}
	serving.Wait()
	os.Exit(2)
}

func serve(l net.Listener, service func(net.Conn) error) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = service(conn) // the client notices that the connection is closed
		}()
	}
}

func echo(conn net.Conn) error {
	// The buffer is small, because there may be thousands at the same time. io.Copy would
	// use splice and set up a pipe for every connection.
	buf := make([]byte, 4<<10)
	for {
		n, err := conn.Read(buf)
		if _, err := conn.Write(buf[:n]); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
}

func source(conn net.Conn) error {
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for left := binary.BigEndian.Uint64(count[:]); left > 0; {
		n, err := conn.Write(buf[:min(left, chunk)])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	return nil
}

func sink(conn net.Conn) error {
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for left := binary.BigEndian.Uint64(count[:]); left > 0; {
		n, err := conn.Read(buf[:min(left, chunk)])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	_, err := conn.Write(count[:])
	return err
}
