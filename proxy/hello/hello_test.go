package hello_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/proxy/hello"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// read passes b to a Reader in pieces of size bytes, and returns the last result.
func read(t *testing.T, b []byte, size int) (hello.Hello, error) {
	t.Helper()
	var r hello.Reader
	for n := 0; n < len(b); {
		n = min(n+size, len(b))
		h, err := r.Read(b[:n:n])
		if err == nil || n == len(b) || !errors.Is(err, hello.ErrIncomplete) {
			return h, err
		}
		if h != (hello.Hello{}) {
			t.Fatalf("got %+v with an error", h)
		}
	}
	return hello.Hello{}, hello.ErrIncomplete
}

// record returns a message in records of at most size bytes.
func record(message []byte, size int) []byte {
	var b []byte
	for len(message) > 0 {
		n := min(size, len(message))
		b = append(b, 22, 3, 1)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return b
}

// client returns the ClientHello of Go's client.
func client(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	cfg.InsecureSkipVerify = true
	c := &wire{}
	_ = tls.Client(c, cfg).HandshakeContext(t.Context())
	b := c.sent.Bytes()
	if len(b) < 5 || len(b) != 5+int(binary.BigEndian.Uint16(b[3:])) {
		t.Fatalf("the client did not send a single record but %d bytes", len(b))
	}
	return b[5:]
}

// wire is a connection that keeps what is written. A Read returns the bytes of in.
type wire struct {
	sent bytes.Buffer
	in   bytes.Reader
}

func (w *wire) Read(p []byte) (int, error)       { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error)      { return w.sent.Write(p) }
func (*wire) Close() error                       { return nil }
func (*wire) LocalAddr() net.Addr                { return nil }
func (*wire) RemoteAddr() net.Addr               { return nil }
func (*wire) SetDeadline(time.Time) error        { return nil }
func (*wire) SetReadDeadline(time.Time) error    { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// extension is an extension of a message that is made by hand.
type extension struct {
	kind uint16
	data string
}

// message returns a ClientHello that is made by hand.
func message(extensions ...extension) []byte {
	var list []byte
	for _, e := range extensions {
		list = binary.BigEndian.AppendUint16(list, e.kind)
		list = binary.BigEndian.AppendUint16(list, uint16(len(e.data)))
		list = append(list, e.data...)
	}
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0)                // no session
	body = append(body, 0, 2, 0x13, 0x01) // one cipher suite
	body = append(body, 1, 0)             // no compression
	body = binary.BigEndian.AppendUint16(body, uint16(len(list)))
	return handshake(append(body, list...))
}

func handshake(body []byte) []byte {
	return append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// names returns a server_name extension.
func names(list ...string) extension {
	var b []byte
	for _, name := range list {
		b = append(b, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
	}
	return extension{0, string(binary.BigEndian.AppendUint16(nil, uint16(len(b)))) + string(b)}
}

// TestReadNameAndECH checks the server name and the offer of ECH that Read returns,
// whatever the sizes of the records and of the pieces in which they arrive.
func TestReadNameAndECH(t *testing.T) {
	long := strings.Repeat("a", 300)
	for _, row := range []struct {
		name    string
		message []byte
		want    hello.Hello
	}{
		{"Go's, with a name", client(t, &tls.Config{ServerName: "api.example"}), hello.Hello{Name: "api.example"}},
		{"Go's, without a name", client(t, &tls.Config{ServerName: "192.0.2.1"}), hello.Hello{}},
		{"Go's, for TLS 1.2", client(t, &tls.Config{ServerName: "old.example", MaxVersion: tls.VersionTLS12}), hello.Hello{Name: "old.example"}},
		{"Go's, with a post-quantum key", client(t, &tls.Config{
			ServerName: "pq.example", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		}), hello.Hello{Name: "pq.example"}},
		{"without extensions at all", handshake(message()[4:][:41]), hello.Hello{}},
		{"with an empty list of extensions", message(), hello.Hello{}},
		{"with capital letters and a final dot, which are kept", message(names("API.Example.")), hello.Hello{Name: "API.Example."}},
		{"with bytes that are no host name", message(names("a b\x00\xff")), hello.Hello{Name: "a b\x00\xff"}},
		{"with a name that is too long", message(names(long)), hello.Hello{Name: long}},
		{"with a name of another type before the host name", message(extension{0, "\x00\x0a\x07\x00\x01x\x00\x00\x03a.b"}), hello.Hello{Name: "a.b"}},
		{"with ECH", message(names("front.example"), extension{0xfe0d, "\x00\x00\x01"}), hello.Hello{Name: "front.example", ECH: true}},
		{"of 16 kB", message(extension{21, strings.Repeat("\x00", 16<<10)}, names("big.example")), hello.Hello{Name: "big.example"}},
		{"of nearly the limit", message(extension{21, strings.Repeat("\x00", 60<<10)}, names("huge.example")), hello.Hello{Name: "huge.example"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, size := range []int{16 << 10, 1000, 7} {
				b := record(row.message, size)
				if len(b) > hello.Limit {
					continue
				}
				for _, piece := range []int{1 << 20, 1460, 1} {
					if got, err := read(t, b, piece); got != row.want || err != nil {
						t.Errorf("in records of %d, pieces of %d: got %+v, %v, want %+v", size, piece, got, err, row.want)
					}
				}
				if got, err := read(t, append(b, "\x17\x03\x03 early data"...), 1<<20); got != row.want || err != nil {
					t.Errorf("with bytes behind it: got %+v, %v", got, err)
				}
			}
		})
	}
}

// TestBeginsRecognizesTLS checks for which first bytes Begins says that a connection may
// be TLS, and for which it is sure.
func TestBeginsRecognizesTLS(t *testing.T) {
	for _, row := range []struct {
		name, b      string
		begins, sure bool
	}{
		{"nothing", "", true, false},
		{"a handshake", "\x16", true, true},
		{"a handshake of an unknown version", "\x16SSH", true, true},
		{"an alert", "\x15\x03\x01\x00\x02\x01\x00", true, true},
		{"an alert in two records", "\x15\x03\x03\x00\x01\x01", true, true},
		{"an empty alert", "\x15\x03\x03\x00\x00", true, true},
		{"a change of cipher", "\x14\x03\x03\x00\x01\x01", true, true},
		{"a byte of an alert", "\x15", true, false},
		{"all but a byte of the header of an alert", "\x15\x03\x04\x00", true, false},
		{"another version", "\x15\x04", false, false},
		{"a long record", "\x15\x03\x03\x01", false, false},
		{"an alert that is too long", "\x15\x03\x03\x00\x03", false, false},
		{"application data", "\x17\x03\x03\x00\x02", false, false},
		{"another protocol", "SSH-2.0", false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if begins, sure := hello.Begins([]byte(row.b)); begins != row.begins || sure != row.sure {
				t.Errorf("begins: %v, sure: %v; want %v, %v", begins, sure, row.begins, row.sure)
			}
		})
	}
}

// TestReadRefusesOtherBytes checks the error of Read for bytes that are no ClientHello,
// that are incomplete, or that exceed the limit.
func TestReadRefusesOtherBytes(t *testing.T) {
	good := record(message(names("a.example")), 1<<14)
	change := func(at int, c byte) []byte {
		b := bytes.Clone(good)
		b[at] = c
		return b
	}
	for _, row := range []struct {
		name string
		b    []byte
		want error
	}{
		{"a request in clear", []byte("GET / HTTP/1.1\r\n"), hello.ErrNotHello},
		{"a banner", []byte("SSH-2.0-OpenSSH"), hello.ErrNotHello},
		{"a hello of SSL 2", []byte{0x80, 0x2e, 1, 0, 2}, hello.ErrNotHello},
		{"an alert", []byte{21, 3, 3, 0, 2, 1, 0}, hello.ErrNotHello},
		{"an unknown major version", change(1, 4), hello.ErrNotHello},
		{"an empty record", change(4, 0), hello.ErrNotHello},
		{"a record that is too long", []byte{22, 3, 1, 0x40, 1}, hello.ErrNotHello},
		{"a ServerHello", change(5, 2), hello.ErrNotHello},
		{"another record between the records of a hello", append(record(message(names("a.example"))[:20], 20), 23, 3, 3, 0, 1, 0), hello.ErrNotHello},
		{"a name list that is too long", change(len(good)-13, 99), hello.ErrNotHello},
		{"two names", record(message(names("a.example", "b.example")), 1<<14), hello.ErrNotHello},
		{"two lists of names", record(message(names("a.example"), names("b.example")), 1<<14), hello.ErrNotHello},
		{"two offers of ECH", record(message(extension{0xfe0d, "x"}, extension{0xfe0d, "y"}), 1<<14), hello.ErrNotHello},
		{"an empty name", record(message(names("")), 1<<14), hello.ErrNotHello},
		{"bytes behind the extensions", record(handshake(append(message()[4:], 0)), 1<<14), hello.ErrNotHello},
		{"an empty message", record(handshake(nil), 1<<14), hello.ErrNotHello},
		{"nothing", nil, hello.ErrIncomplete},
		{"a byte", good[:1], hello.ErrIncomplete},
		{"all but a byte", good[:len(good)-1], hello.ErrIncomplete},
		{"a length over the limit", []byte{22, 3, 1, 1, 0, 1, 2, 0, 0}, hello.ErrTooLarge},
		{"more than the limit in small records", record(message(extension{21, strings.Repeat("\x00", 60<<10)}), 8), hello.ErrTooLarge},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, piece := range []int{1 << 20, 1} {
				if h, err := read(t, row.b, piece); !errors.Is(err, row.want) || h != (hello.Hello{}) {
					t.Errorf("in pieces of %d: got %+v, %v, want %v", piece, h, err, row.want)
				}
			}
		})
	}
}

// TestAllocations checks that the name is the only allocation of Read.
func TestAllocations(t *testing.T) {
	b := record(message(names("a.name.that.is.long.enough.to.be.allocated.example")), 1<<14)
	n := testing.AllocsPerRun(100, func() {
		var r hello.Reader
		if _, err := r.Read(b[:len(b)-1]); !errors.Is(err, hello.ErrIncomplete) {
			t.Fatal(err)
		}
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations, want one, the name", n)
	}
}

func BenchmarkRead(b *testing.B) {
	whole := record(message(extension{51, strings.Repeat("k", 1216)}, names("api.example")), 1<<14)
	b.ReportAllocs()
	for b.Loop() {
		var r hello.Reader
		if _, err := r.Read(whole); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSizes reads messages of growing size. The time per byte must not grow with the
// size.
func BenchmarkSizes(b *testing.B) {
	many := func(size int) []byte {
		return message(append(slices.Repeat([]extension{{51, ""}}, size/4), names("api.example"))...)
	}
	for _, size := range []int{1 << 10, 4 << 10, 16 << 10, 40 << 10} {
		for name, whole := range map[string][]byte{
			"one-extension": record(message(extension{51, strings.Repeat("k", size)}, names("api.example")), 1<<14),
			"extensions":    record(many(size), 1<<14),
			"small-records": record(many(size), 16),
		} {
			for _, piece := range []int{hello.Limit, 1} {
				b.Run(fmt.Sprintf("%s/%d-bytes-at-a-time/%dKiB", name, piece, size>>10), func(b *testing.B) {
					b.SetBytes(int64(len(whole)))
					for b.Loop() {
						var r hello.Reader
						var err error
						for n := 0; n < len(whole); n += piece {
							_, err = r.Read(whole[:min(n+piece, len(whole))])
						}
						if err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

var errStop = errors.New("seen enough")

// asGo returns the name that crypto/tls reads. ok is false if it does not accept the
// bytes as a ClientHello that names at most one server.
func asGo(t *testing.T, b []byte) (name string, ok bool) {
	t.Helper()
	c := &wire{}
	c.in.Reset(b)
	_ = tls.Server(c, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = info.ServerName, true
		return nil, errStop
	}}).HandshakeContext(t.Context())
	return name, ok
}

// FuzzRead checks for any bytes that the Hello is zero if there is an error, that the
// result does not depend on how the bytes arrive, on bytes that follow or on bytes beyond
// the limit, and that crypto/tls never reads another name.
func FuzzRead(f *testing.F) {
	for _, m := range [][]byte{
		message(names("a.example")), message(names("a.example"), names("b.example")),
		message(extension{0xfe0d, "x"}, names("front.example")), message(),
		{1, 2, 3},
	} {
		f.Add(record(m, 1<<14), uint16(1))
		f.Add(record(m, 9), uint16(7))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n"), uint16(3))
	f.Add(append(record(message(names("a.example")), 40), bytes.Repeat([]byte{22, 3, 1, 0, 1, 0}, 20)...), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		want, wantErr := new(hello.Reader).Read(b)
		if wantErr != nil && want != (hello.Hello{}) {
			t.Fatalf("got %+v with %v", want, wantErr)
		}
		if got, err := read(t, b, int(size)+1); got != want || !errors.Is(err, wantErr) && len(b) > 0 {
			t.Fatalf("in pieces of %d: got %+v, %v, want %+v, %v", int(size)+1, got, err, want, wantErr)
		}
		if wantErr == nil {
			if got, err := new(hello.Reader).Read(append(bytes.Clone(b), 0xff, 22, 3)); got != want || err != nil {
				t.Fatalf("with more behind: got %+v, %v, want %+v", got, err, want)
			}
			if name, ok := asGo(t, b); ok && name != want.Name {
				t.Fatalf("crypto/tls reads %q, want %q", name, want.Name)
			}
		}
		if len(b) > hello.Limit {
			if got, err := new(hello.Reader).Read(b[:hello.Limit]); got != want || !errors.Is(err, wantErr) {
				t.Fatalf("cut at the limit: got %+v, %v, want %+v, %v", got, err, want, wantErr)
			}
		}
	})
}

// FuzzGo checks that every ClientHello of Go's client is read as crypto/tls reads it.
func FuzzGo(f *testing.F) {
	f.Add("api.example", uint16(1000), false)
	f.Add("", uint16(3), true)
	f.Fuzz(func(t *testing.T, name string, size uint16, old bool) {
		cfg := &tls.Config{ServerName: name, InsecureSkipVerify: true}
		if old {
			cfg.MaxVersion = tls.VersionTLS12
		}
		c := &wire{}
		if err := tls.Client(c, cfg).HandshakeContext(t.Context()); err == nil || !errors.Is(err, io.EOF) {
			return // the client sent nothing, because the name cannot be sent
		}
		b := record(c.sent.Bytes()[5:], int(size%2000)+1)
		if len(b) > hello.Limit {
			return
		}
		h, err := read(t, b, 100)
		want, ok := asGo(t, record(c.sent.Bytes()[5:], 1<<14))
		if err != nil && ok || ok && h.Name != want {
			t.Fatalf("got %+v, %v, crypto/tls reads %q, %v", h, err, want, ok)
		}
	})
}
