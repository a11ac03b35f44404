package dns

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// drainingClient is a client connection to a server in a bubble. It queries one name.
type drainingClient struct {
	net.Conn
	reader *bufio.Reader
}

// overStream and overHTTP send a query and report whether the answer announces the end.
func (c *drainingClient) overStream(t *testing.T) (last bool) {
	t.Helper()
	if _, err := c.Write(framed(packetOf("allowed.example", mdns.TypeA, false))); err != nil {
		t.Fatal(err)
	}
	var size uint16
	if err := binary.Read(c.reader, binary.BigEndian, &size); err != nil {
		t.Fatal(err)
	}
	if _, err := c.reader.Discard(int(size)); err != nil {
		t.Fatal(err)
	}
	return false
}

func (c *drainingClient) overHTTP(t *testing.T) (last bool) {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "http://gateway.example"+DoHPath, bytes.NewReader(packetOf("allowed.example", mdns.TypeA, false))))
	req.Header.Set("Content-Type", dnsMessage)
	if err := req.Write(c); err != nil {
		t.Fatal(err)
	}
	resp := must(http.ReadResponse(c.reader, req))
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("answered %s, %v", resp.Status, err)
	}
	return resp.Close
}

// TestBeginDrain checks that connections, earlier and later ones, are served for a
// second more and then end, and that an answer over HTTP/1.1 announces the end. After
// Drain, a later connection gets no answer.
func TestBeginDrain(t *testing.T) {
	for wire, row := range map[string]struct {
		serve func(*testing.T, *Server, net.Conn)
		ask   func(*drainingClient, *testing.T) (last bool)
		lasts bool // says that an answer during the drain announces the end
	}{
		"stream": {func(t *testing.T, s *Server, end net.Conn) {
			t.Helper()
			s.ServeStream(t.Context(), &listen.Conn{Conn: end, Caller: sidecar(), Listener: "test"})
		}, (*drainingClient).overStream, false},
		"HTTP/1.1": {func(t *testing.T, s *Server, end net.Conn) {
			t.Helper()
			s.ServeDoH(t.Context(), &listen.Conn{Conn: end, Caller: sidecar(), Listener: "test"})
		}, (*drainingClient).overHTTP, true},
	} {
		dial := func(t *testing.T, s *Server) *drainingClient {
			t.Helper()
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				row.serve(t, s, far)
			}()
			t.Cleanup(func() { _ = near.Close() })
			return &drainingClient{near, bufio.NewReader(near)}
		}
		ends := func(t *testing.T, name string, c *drainingClient, want time.Duration) {
			t.Helper()
			begin := time.Now()
			if rest, err := io.ReadAll(c.reader); len(rest) > 0 || err != nil || time.Since(begin) != want {
				t.Errorf("%s: after %s came %q, %v; want the end after %s", name, time.Since(begin), rest, err, want)
			}
		}
		t.Run(wire, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, nil)
				rests, asks, silent := dial(t, s), dial(t, s), dial(t, s)
				for _, c := range []*drainingClient{rests, asks} {
					if row.ask(c, t) {
						t.Error("an answer before the drain is the last one")
					}
				}
				synctest.Wait()
				s.BeginDrain()
				time.Sleep(drainingTime * 9 / 10)
				if last := row.ask(asks, t); last != row.lasts {
					t.Errorf("an answer in the drain is the last one: %v", last)
				}
				left := drainingTime / 10
				if row.lasts {
					left = 0
				}
				ends(t, "it asks", asks, left)
				ends(t, "it rests", rests, drainingTime/10-left)
				ends(t, "it has never asked", silent, 0)

				later := dial(t, s)
				time.Sleep(drainingTime / 2)
				if last := row.ask(later, t); last != row.lasts {
					t.Errorf("an answer to one that comes later is the last one: %v", last)
				}
				left = drainingTime / 2
				if row.lasts {
					left = 0
				}
				ends(t, "it comes later", later, left)

				s.Drain()
				ends(t, "it comes too late", dial(t, s), 0)
			})
		})
	}
}

// TestDrainAnswersQueriesThatWereRead checks that queries which were read from the client
// before Drain are answered, although they are parsed only afterwards.
func TestDrainAnswersQueriesThatWereRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		s.cfg.Limits.PerStream = 1
		client, ended := bubble(t, s)
		one := framed(packetOf("allowed.example", mdns.TypeA, false))
		if _, err := client.Write(bytes.Repeat(one, 3)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the first answer waits to be read, and the other queries wait in the buffer
		s.Drain()
		raw, err := io.ReadAll(client)
		answers := 0
		for len(raw) > 2 {
			raw = raw[2+binary.BigEndian.Uint16(raw):]
			answers++
		}
		if answers != 3 || err != nil {
			t.Errorf("%d answers, %v; want 3", answers, err)
		}
		<-ended
	})
}

// TestDrainEndsIncompleteRequests checks that a drain does not wait for a request over
// HTTP/1.1 of which only a part has come: one whose body is not complete is answered, and
// one whose head is not complete ends with its connection.
func TestDrainEndsIncompleteRequests(t *testing.T) {
	const head = "POST " + DoHPath + " HTTP/1.1\r\nHost: gateway.example\r\nContent-Type: " + dnsMessage + "\r\nContent-Length: 40\r\n"
	for _, row := range []struct {
		name, sent string
		status     int // zero if there is no answer
	}{
		{"no body", head + "\r\n", http.StatusServiceUnavailable},
		{"half a body", head + "\r\nhalf of it", http.StatusServiceUnavailable},
		{"half a head", head[:40], 0},
	} {
		for stage, drain := range map[time.Duration]func(*Server){drainingTime: (*Server).BeginDrain, 0: (*Server).Drain} {
			t.Run(row.name+" after "+stage.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newServer(t, nil)
					near, far := net.Pipe()
					done := make(chan struct{})
					go func() {
						defer close(done)
						defer far.Close()
						s.ServeDoH(t.Context(), &listen.Conn{Conn: far, Caller: sidecar(), Listener: "test"})
					}()
					if _, err := io.WriteString(near, row.sent); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					began := time.Now()
					drain(s)
					reader := bufio.NewReader(near)
					resp, err := http.ReadResponse(reader, nil)
					switch {
					case row.status == 0 && err == nil, row.status != 0 && (err != nil || resp.StatusCode != row.status || !resp.Close):
						t.Errorf("answered %v, %v; want the last answer with status %d", resp, err, row.status)
					}
					if took := time.Since(began); took != stage {
						t.Errorf("answered or ended after %s, want %s", took, stage)
					}
					if err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					_ = near.Close()
					<-done
				})
			})
		}
	}
}

// deadlineRecorder is the writer of an answer. It notes that a deadline for reading the
// request was set.
type deadlineRecorder struct {
	*httptest.ResponseRecorder
	set bool
}

func (r *deadlineRecorder) SetReadDeadline(time.Time) error {
	r.set = true
	return nil
}

// TestDrainEndsOnlyBodies checks that a drain which ends the bodies that have not come
// ends no request without a body: net/http would take the deadline for the end of the
// client, and the query would have no answer.
func TestDrainEndsOnlyBodies(t *testing.T) {
	get := httptest.NewRequest(http.MethodGet, DoHPath+"?dns="+base64.RawURLEncoding.EncodeToString(packetOf("allowed.example", mdns.TypeA, false)), nil)
	post := httptest.NewRequest(http.MethodPost, DoHPath, strings.NewReader("half of it"))
	for _, req := range []*http.Request{get, post} {
		h := &dohConn{ending: true, bodies: make(map[*http.ResponseController]struct{})}
		w := &deadlineRecorder{ResponseRecorder: httptest.NewRecorder()}
		_, err := h.read(w, req)
		if hasBody := req == post; w.set != hasBody || (err != nil) != hasBody {
			t.Errorf("%s: a deadline was set: %t, error %v; want %t for both", req.Method, w.set, err, hasBody)
		}
	}
}
