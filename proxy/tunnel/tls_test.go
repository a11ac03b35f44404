package tunnel

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/missing"
)

func TestBulkBothWaysAtOnce(t *testing.T) {
	size := int64(64 << 20)
	if raceEnabled {
		size /= 8
	}
	for _, kind := range []string{"tls", "tcp", "unix"} {
		t.Run(kind, func(t *testing.T) { bulkBothWays(t, kind, size) })
	}
}

func bulkBothWays(t *testing.T, kind string, size int64) {
	t.Helper()
	r := startRig(t, kind, Config{}, "")
	var all sync.WaitGroup
	way := func(name string, seed byte, from io.Writer, finish func(), to io.Reader) {
		sent, got := sha256.New(), sha256.New()
		all.Go(func() {
			src := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
			if _, err := io.CopyBuffer(io.MultiWriter(from, sent), src, make([]byte, 50_000)); err != nil {
				t.Errorf("%s: writing: %v", name, err)
			}
			finish()
		})
		all.Go(func() {
			if _, err := io.Copy(got, to); err != nil {
				t.Errorf("%s: reading: %v", name, err)
			}
		})
		t.Cleanup(func() {
			if !bytes.Equal(sum(got), sum(sent)) {
				t.Errorf("%s: other bytes arrived than were sent", name)
			}
		})
	}
	way("up", 1, r.client, func() { finish(t, r.client) }, r.origin)
	way("down", 2, r.origin, func() { finish(t, r.origin) }, r.client)
	all.Wait()
	got := r.wait(t)
	if got.Up != size || got.Down != size || got.Err != nil {
		t.Errorf("got %+v, want %d bytes each way", got, size)
	}
}

func sum(h hash.Hash) []byte { return h.Sum(nil) }

// TestOneByteWrites checks that bytes which are sent one by one, both ways at once,
// arrive in order.
func TestOneByteWrites(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			var all sync.WaitGroup
			for _, ends := range [][2]io.ReadWriter{{r.client, r.origin}, {r.origin, r.client}} {
				all.Go(func() {
					for i := range 500 {
						if _, err := ends[0].Write([]byte{byte(i)}); err != nil {
							t.Error(err)
						}
					}
				})
				all.Go(func() {
					got := make([]byte, 500)
					if _, err := io.ReadFull(ends[1], got); err != nil {
						t.Error(err)
					}
					for i := range got {
						if got[i] != byte(i) {
							t.Errorf("got %d at %d", got[i], i)
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// TestClientOverTLSSendsFINOnly checks that a FIN without a close_notify counts as the
// end of the client.
func TestClientOverTLSSendsFINOnly(t *testing.T) {
	r := startRig(t, "tls", Config{}, "")
	send(t, r.client, "bye")
	finish(t, r.wire)
	expectEnd(t, r.origin, "bye")
	send(t, r.origin, "bye")
	finish(t, r.origin)
	expectEnd(t, r.client, "bye")
	check(t, r.wait(t), Result{Up: 3, Down: 3, Reason: Client})
}

// closeNotify is the length of the record of a close_notify: header, alert, type, tag.
const closeNotify = 5 + 2 + 1 + 16

// TestCloseSendsCloseNotify checks that Close sends a close_notify over TLS for every
// reason but Error.
func TestCloseSendsCloseNotify(t *testing.T) {
	for _, reason := range closings {
		t.Run(reason.String(), func(t *testing.T) {
			r := startRig(t, "tls", Config{}, "")
			send(t, r.client, "x")
			expect(t, r.origin, "x")
			r.Close(reason)
			r.wait(t)
			got, err := io.ReadAll(r.wire)
			want := closeNotify
			if reason == Error {
				want = 0
			}
			if len(got) != want || err != nil {
				t.Errorf("got %d bytes, %v, want %d", len(got), err, want)
			}
		})
	}
}

// late is a socket for a process that gets no processor time: a deadline for writing has
// passed before the write begins.
type late struct{ *net.TCPConn }

func (l late) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		t = time.Unix(1, 0)
	}
	return l.TCPConn.SetWriteDeadline(t)
}

// tearing is a connection. If it is set to tear, its next write sends only the first
// part bytes.
type tearing struct {
	net.Conn
	part int
	tear atomic.Bool
}

func (c *tearing) Write(p []byte) (int, error) {
	if c.tear.Swap(false) {
		n, _ := c.Conn.Write(p[:c.part])
		return n, os.ErrDeadlineExceeded
	}
	return c.Conn.Write(p)
}

// rigOn returns a rig whose client speaks TLS. The tunnel has what over makes of its
// socket.
func rigOn(t *testing.T, over func(*net.TCPConn) net.Conn) *rig {
	t.Helper()
	r := &rig{result: make(chan Result, 1)}
	wire, accepted := pair(t, "tcp")
	origin, upstream := pair(t, "tcp")
	socket, ok := accepted.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T is no TCP connection", accepted)
	}
	client, server := secure(t, wire, Wrap(over(socket)))
	r.client, r.wire, r.origin = client, wire, origin
	r.Tunnel = New(server, upstream, Config{})
	return r
}

// TestLastWordsNeedNoTime checks that a client gets the last bytes for which there is room
// also on a busy machine: the close_notify of a tunnel that is closed, and the farewell of
// one that is refused.
func TestLastWordsNeedNoTime(t *testing.T) {
	busy := func(socket *net.TCPConn) net.Conn { return late{socket} }
	t.Run("closed", func(t *testing.T) {
		r := rigOn(t, busy)
		r.start(t, "x")
		expect(t, r.origin, "x")
		r.Close(Revoked)
		if got, err := io.ReadAll(r.wire); len(got) != closeNotify || err != nil {
			t.Errorf("got %d bytes, %v, want %d", len(got), err, closeNotify)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := rigOn(t, busy)
		r.Guard(word("hello"))
		r.start(t, "help")
		expectEnd(t, r.client, "no")
		r.client.Close() // which ends the tunnel
	})
}

// TestNothingFollowsATornRecord checks that a client which gets only part of a TLS record
// gets nothing after it. Otherwise it would report a forged record and not a lost end.
func TestNothingFollowsATornRecord(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, r *rig){
		"farewell": func(t *testing.T, r *rig) {
			t.Helper()
			r.Guard(word("hello"))
			r.start(t, "help")
		},
		"bytes of the origin": func(t *testing.T, r *rig) {
			t.Helper()
			r.start(t, "")
			send(t, r.origin, "bytes")
		},
		"answer without a tunnel": func(_ *testing.T, r *rig) {
			_, _ = io.WriteString(r.Tunnel.client.conn, "HTTP/1.1 403 Forbidden\r\n\r\n") // fails
			_ = r.Tunnel.client.conn.Close()
		},
		"close_notify": func(t *testing.T, r *rig) {
			t.Helper()
			r.start(t, "")
			finish(t, r.origin)
		},
	} {
		for _, part := range []int{0, 1, 12} {
			t.Run(fmt.Sprintf("%d bytes of a record, %s", part, name), func(t *testing.T) {
				torn := &tearing{part: part}
				r := rigOn(t, func(socket *net.TCPConn) net.Conn {
					torn.Conn = socket
					return torn
				})
				torn.tear.Store(true)
				end(t, r)
				if got, err := io.ReadAll(r.wire); len(got) != part || err != nil {
					t.Errorf("got %d bytes, %v, want %d", len(got), err, part)
				}
			})
		}
	}
}

// scribe writes TLS 1.3 records as the client would, since crypto/tls cannot
// be made to update its keys or to cut its records.
type scribe struct {
	secret []byte
	seq    uint64
}

// record returns one protected record.
func (s *scribe) record(t *testing.T, kind byte, content string) []byte {
	t.Helper()
	block, err := aes.NewCipher(s.expand(t, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := s.expand(t, "iv", 12)
	for i, b := range binary.BigEndian.AppendUint64(nil, s.seq) {
		nonce[4+i] ^= b
	}
	s.seq++
	inner := append([]byte(content), kind)
	header := []byte{23, 3, 3}
	header = binary.BigEndian.AppendUint16(header, uint16(len(inner)+aead.Overhead()))
	return aead.Seal(header, nonce, inner, header)
}

// update switches to the next secret (RFC 8446 section 7.2).
func (s *scribe) update(t *testing.T) {
	t.Helper()
	s.secret, s.seq = s.expand(t, "traffic upd", sha256.Size), 0
}

func (s *scribe) expand(t *testing.T, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, s.secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newScribe returns a rig whose client has just finished its handshake.
func newScribe(t *testing.T) (*rig, *scribe) {
	t.Helper()
	r := &rig{result: make(chan Result, 1)}
	wire, accepted := pair(t, "tcp")
	origin, upstream := pair(t, "tcp")
	var log strings.Builder
	client, server := secureWith(t, wire, Wrap(accepted), &tls.Config{KeyLogWriter: &log})
	if client.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		missing.Skip(t, "this processor has no AES instructions, so another cipher was chosen: the test writes AES-128-GCM only")
	}
	s := new(scribe)
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			s.secret = secret
		}
	}
	r.client, r.wire, r.origin = client, wire, origin
	r.Tunnel = New(server, upstream, Config{})
	r.start(t, "")
	return r, s
}

const (
	handshake       = 22
	applicationData = 23
	keyUpdate       = "\x18\x00\x00\x01\x01" // update_requested
)

// TestKeyUpdate checks a tunnel whose client updates its keys.
func TestKeyUpdate(t *testing.T) {
	r, s := newScribe(t)
	for range 3 {
		r.wire.Write(s.record(t, applicationData, "before "))
		expect(t, r.origin, "before ")
		// The message is sent in two records, so that the tunnel waits in the middle of it.
		r.wire.Write(s.record(t, handshake, keyUpdate[:2]))
		r.wire.Write(s.record(t, handshake, keyUpdate[2:]))
		s.update(t)
		r.wire.Write(s.record(t, applicationData, "after"))
		expect(t, r.origin, "after")
		send(t, r.origin, "under the server's new key")
		expect(t, r.client, "under the server's new key")
	}
}

// TestRecordsInPieces checks TLS records that arrive byte by byte, with empty records
// between them.
func TestRecordsInPieces(t *testing.T) {
	r, s := newScribe(t)
	var want strings.Builder
	for i := range 20 {
		text := strings.Repeat(string(rune('a'+i)), 1+i*i)
		want.WriteString(text)
		record := s.record(t, applicationData, text)
		for _, b := range record[:10] {
			r.wire.Write([]byte{b})
		}
		r.wire.Write(record[10:])
		r.wire.Write(s.record(t, applicationData, "")) // an empty record is skipped
	}
	expect(t, r.origin, want.String())
}
