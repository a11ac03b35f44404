// Command dot queries a name server over TLS with a client certificate, as fast as the
// server answers, and prints the results as dnsperf does.
//
// Each connection has many queries outstanding. An answer counts for any of them; only
// its code is checked.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The load: 200 queries are outstanding, as many as dnsperf has over UDP.
const (
	connections = 4
	outstanding = 50
)

func main() {
	if err := run(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "dot:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context) error {
	server := flag.String("server", "", "the `address` of the server")
	name := flag.String("name", "", "the `name` that its certificate has")
	identity := flag.String("identity", "", "the `directory` of the certificate to show")
	names := flag.String("names", "", "the `file` of the names to ask for, a line each")
	length := flag.Duration("for", time.Second, "how `long`")
	flag.Parse()
	config, err := readIdentity(*identity, *name)
	if err != nil {
		return err
	}
	queries, err := readQueries(*names)
	if err != nil {
		return err
	}
	end := time.Now().Add(*length)
	var clients sync.WaitGroup
	counts, errs := make([]counts, connections), make([]error, connections)
	for i := range connections {
		clients.Go(func() { counts[i], errs[i] = ask(ctx, *server, config, queries, end) })
	}
	clients.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var all, good int
	for _, c := range counts {
		all, good = all+c.all, good+c.good
	}
	fmt.Printf("Queries completed: %d\nResponse codes: NOERROR %d\n", all, good)
	return nil
}

func readIdentity(dir, name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: roots, Certificates: []tls.Certificate{pair}, NextProtos: []string{"dot"},
	}, nil
}

// readQueries returns a query for each name, with its length in front.
func readQueries(file string) ([][]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var queries [][]byte
	for line := range strings.Lines(string(text)) {
		host, _, _ := strings.Cut(line, " ")
		name, err := dnsmessage.NewName(host + ".")
		if err != nil {
			return nil, err
		}
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		packed, err := m.Pack()
		if err != nil {
			return nil, err
		}
		queries = append(queries, append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	}
	return queries, nil
}

// counts are the numbers of all answers, and of those with NOERROR.
type counts struct{ all, good int }

// ask keeps queries outstanding on one connection until end, and then reads the answers
// that are missing.
func ask(ctx context.Context, server string, config *tls.Config, queries [][]byte, end time.Time) (c counts, err error) {
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", server)
	if err != nil {
		return c, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(10 * time.Second)); err != nil {
		return c, err
	}
	in, out := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriterSize(conn, 64<<10)
	next, open := 0, 0
	for {
		for ; open < outstanding && time.Now().Before(end); open, next = open+1, next+1 {
			if _, err := out.Write(queries[next%len(queries)]); err != nil {
				return c, err
			}
		}
		if err := out.Flush(); err != nil || open == 0 {
			return c, err
		}
		// Read at least one answer, and then all that have arrived.
		for first := true; open > 0 && (first || in.Buffered() > 2); first = false {
			code, err := readAnswer(in)
			if err != nil {
				return c, err
			}
			c.all, open = c.all+1, open-1
			if code == 0 {
				c.good++
			}
		}
	}
}

// readAnswer reads an answer and returns its code.
func readAnswer(in *bufio.Reader) (code byte, err error) {
	var head [6]byte // the length, the ID and the flags
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, err
	}
	rest := int(binary.BigEndian.Uint16(head[:])) - 4
	if rest < 0 {
		return 0, errors.New("an answer is too short")
	}
	_, err = in.Discard(rest)
	return head[5] & 0xf, err
}
