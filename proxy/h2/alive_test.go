package h2_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// clientOf starts the engine as the client of a connection in the memory, within synctest, and
// returns the framer of a scripted server, which has not sent anything.
func clientOf(t *testing.T, cfg h2.Config) (c *h2.Conn, server *http2.Framer, ended chan error) {
	t.Helper()
	near, far := net.Pipe()
	ahead := &readAhead{Conn: far, parts: make(chan []byte, 10000), deadline: time.Now().Add(24 * time.Hour)}
	go ahead.run()
	cfg.Client = true
	link, err := tunnel.NewLink(near)
	if err != nil {
		t.Fatal(err)
	}
	c, ended = h2.New(cfg, link), make(chan error, 1)
	go func() { ended <- c.Run(context.Background(), nil) }()
	if _, err := io.ReadFull(ahead, make([]byte, len(h2.Preface))); err != nil {
		t.Fatal(err)
	}
	return c, http2.NewFramer(far, ahead), ended
}

// pinged reads frames of a client until a PING comes, and returns it.
func pinged(t *testing.T, server *http2.Framer) *http2.PingFrame {
	t.Helper()
	for {
		f, err := server.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if ping, ok := f.(*http2.PingFrame); ok {
			return ping
		}
	}
}

// TestPing checks that Ping waits for its answer and for no other one.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, ended := clientOf(t, h2.Config{})
		defer func() { c.Close(); <-ended }()
		if err := server.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- c.Ping(t.Context()) }()
		ping := pinged(t, server)
		if ping.IsAck() {
			t.Fatal("an answer that nobody has asked for")
		}
		if err := errors.Join(server.WritePing(true, [8]byte{9}), server.WritePing(true, ping.Data)); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a PING without an answer: %v", err)
		}
		go func() { result <- c.Ping(t.Context()) }()
		pinged(t, server)
		pinged(t, server)
		c.Close()
		if err := <-result; !errors.Is(err, h2.ErrClosed) {
			t.Errorf("a PING on a connection that ends: %v", err)
		}
		if err := c.Ping(t.Context()); !errors.Is(err, h2.ErrClosed) {
			t.Errorf("a PING on a connection that has ended: %v", err)
		}
	})
}

// TestAnswersThatNobodyAskedForCost checks that only an answer to a PING of ours is free.
func TestAnswersThatNobodyAskedForCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, ended := clientOf(t, h2.Config{})
		defer c.Close()
		if err := server.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		for range h2.FullBudget + 2 {
			if server.WritePing(true, [8]byte{9}) != nil {
				break
			}
		}
		if broken, ok := errors.AsType[*h2.Error](<-ended); !ok || !broken.IsFlood() {
			t.Errorf("the connection ends with %v", broken)
		}
	})
}

// TestASilentPeer checks that a silent peer is sent one PING, while there are streams, and
// that the connection ends unless it answers.
func TestASilentPeer(t *testing.T) {
	const after, timeout = 15 * time.Second, 5 * time.Second
	for _, row := range []struct {
		name            string
		stream, answers bool
		ends            bool
	}{
		{"without streams", false, false, false},
		{"with a stream, and answers", true, true, false},
		{"with a stream, and is gone", true, false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, server, ended := clientOf(t, h2.Config{PingAfter: after, PingTimeout: timeout})
				defer c.Close()
				began, patience := time.Now(), 4*after
				if err := server.WriteSettings(); err != nil {
					t.Fatal(err)
				}
				if err := c.AwaitPeer(t.Context()); err != nil {
					t.Fatal(err)
				}
				if row.stream {
					if _, err := c.Open(t.Context(), []h2.Field{{Name: ":method", Value: "CONNECT"}}, false); err != nil {
						t.Fatal(err)
					}
					ping := pinged(t, server)
					patience = 2 * timeout // the next PING comes later
					if at := time.Since(began); at < after || at > after+timeout {
						t.Errorf("a PING after %v", at)
					}
					if row.answers {
						if err := server.WritePing(true, ping.Data); err != nil {
							t.Fatal(err)
						}
					}
				}
				select {
				case err := <-ended:
					if !row.ends || time.Since(began) > after+3*timeout || errors.Is(err, h2.ErrClosed) {
						t.Errorf("the connection ends after %v: %v", time.Since(began), err)
					}
					return
				case <-time.After(patience):
				}
				if row.ends {
					t.Error("the connection lasts")
				}
				c.Close()
				<-ended
			})
		})
	}
}

// TestState checks what a client knows of its connection.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, ended := clientOf(t, h2.Config{})
		defer func() { c.Close(); <-ended }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.AwaitPeer(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before SETTINGS: %v", err)
		}
		if err := server.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 7}); err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitPeer(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := c.Open(t.Context(), []h2.Field{{Name: ":method", Value: "CONNECT"}}, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := c.State(); s != (h2.State{Open: 1, Most: 7, Takes: true, Silence: s.Silence}) || s.Silence < time.Minute || s.Silence > 2*time.Minute {
			t.Errorf("%+v", s)
		}
		h2.ExhaustIDs(c)
		if _, err := c.Open(t.Context(), nil, false); !errors.Is(err, h2.ErrNotTaken) || c.State().Takes {
			t.Errorf("without ids: %v, %+v", err, c.State())
		}
		c.Close()
		if c.State().Takes {
			t.Error("a connection that has ended takes streams")
		}
	})
}

// TestAwaitPeerThatLeaves checks that a peer which ends the connection is not waited for.
func TestAwaitPeerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, ended := clientOf(t, h2.Config{})
		result := make(chan error, 1)
		go func() { result <- c.AwaitPeer(t.Context()) }()
		if err := server.WritePing(false, [8]byte{}); err != nil { // the first frame must be SETTINGS
			t.Fatal(err)
		}
		if _, ok := errors.AsType[*h2.Error](<-result); !ok {
			t.Error("the peer is waited for")
		}
		<-ended
	})
}
