// Command relay is the floor of the benchmark: it shows what a CONNECT proxy over mTLS
// costs in Go without a policy, an identity, a record or a trace.
//
// It has two listeners, in this order: one that demands a client certificate of
// its CA, and one without TLS. It reads a request head without
// checking more of it than it needs, connects to any target, and
// copies both ways. It is only for benchmarks on loopback.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
)

func main() {
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	dir := flag.String("identity", "", "directory with svid.pem, svid_key.pem and bundle.pem")
	flag.Parse()
	config, err := load(os.DirFS(*dir))
	if err != nil {
		log.Error("reading the certificates", slog.Any("error", err))
		os.Exit(2)
	}
	var serving sync.WaitGroup
	for _, config := range []*tls.Config{config, nil} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			log.Error("listening", slog.Any("error", err))
			os.Exit(2)
		}
		log.Info("listening", slog.String("address", l.Addr().String()))
		serving.Go(func() { log.Error("accepting", slog.Any("error", serve(ctx, l, config))) })
	}
	serving.Wait()
	os.Exit(2)
}

func newConfig(certificate tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{certificate},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              clients,
		CurvePreferences:       []tls.CurveID{tls.X25519, tls.X25519MLKEM768}, // the client offers one of them
		SessionTicketsDisabled: true,
	}
}

// serve accepts connections. They are over TLS unless config is nil.
func serve(ctx context.Context, l net.Listener, config *tls.Config) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if config != nil {
			conn = tls.Server(conn, config)
		}
		go handle(ctx, conn)
	}
}

func handle(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	target, early, err := readHead(client)
	if err != nil {
		return
	}
	upstream, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		_, _ = io.WriteString(client, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer upstream.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	if _, err := upstream.Write(early); err != nil {
		return
	}
	var down sync.WaitGroup
	down.Go(func() { pipe(client, upstream) })
	pipe(upstream, client)
	down.Wait()
}

// pipe copies until src ends, and then closes the sending direction of dst.
func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	_ = dst.Close()
	_ = src.Close()
}

// readHead returns the target of a CONNECT and the bytes after its head.
func readHead(conn net.Conn) (target string, early []byte, err error) {
	head := make([]byte, 0, 1024)
	for {
		n, err := conn.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			words := bytes.Fields(head[:end])
			if len(words) < 3 || string(words[0]) != "CONNECT" {
				return "", nil, errors.New("not a CONNECT")
			}
			return string(words[1]), head[end+4:], nil
		}
		if err != nil {
			return "", nil, err
		}
		if len(head) == cap(head) {
			return "", nil, errors.New("head too long")
		}
	}
}
