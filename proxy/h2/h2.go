// Package h2 carries many streams over one connection by HTTP/2 (RFC 9113), as the server
// or as the client. It frames, and bounds what a peer may cost; it does not know what the
// fields of a head mean, and decides nothing.
//
//	link, err := tunnel.NewLink(conn)
//	c := h2.New(h2.Config{Serve: func(s *h2.Stream, h h2.Head) { … }}, link)
//	err = c.Run(ctx)
//
// One goroutine reads the connection (Run). It never waits for a stream or for a write:
// what a stream does not take at once is kept in borrowed buffers until the window of the
// stream is used up. Credit for the connection returns when bytes arrive and credit for a
// stream when they are taken, so that a stream that is not read does not stall the others.
package h2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Preface is what a client sends first (RFC 9113 section 3.4).
const Preface = http2.ClientPreface

// The windows, in bytes, and the largest payload of a frame that is read.
const (
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	maxFrame     = 64 << 10
)

// initialWindow is the window of a stream and of a connection before SETTINGS and
// WINDOW_UPDATE change it (RFC 9113 section 6.9.2).
const initialWindow = 65535

// The defaults of Config.
const (
	DefaultMaxStreams  = 1000
	DefaultHeadLimit   = 64 << 10
	DefaultHeadTimeout = 10 * time.Second
	DefaultWriteTime   = time.Minute
	DefaultPingTimeout = 5 * time.Second
)

// Config says how a connection is run. The zero value is for a server.
type Config struct {
	// Client says that this end opens the streams.
	Client bool
	// Serve is called for each stream that the peer opens, in a goroutine of its own. If it
	// returns a function, that is called next, in a goroutine with a small stack, for what
	// lasts long, and for which the stream has no context any more. Then the stream is
	// closed. Required for a server.
	Serve func(s *Stream, h Head) (run func())
	// MaxStreams is how many streams the peer may have open; zero means
	// DefaultMaxStreams.
	MaxStreams int
	// HeadLimit is the largest size of a head in bytes, counted as RFC 9113 section
	// 6.5.2 counts it; zero means DefaultHeadLimit.
	HeadLimit int
	// HeadTimeout is how long the peer may take from the first byte of a head, or of
	// another frame without data, to its last; zero means DefaultHeadTimeout.
	HeadTimeout time.Duration
	// WriteTimeout is how long a write may take, after which the connection is given up;
	// zero means DefaultWriteTime.
	WriteTimeout time.Duration
	// Idle is how long the connection may stay without a stream; zero means for ever.
	Idle time.Duration
	// Max is how long the peer may open streams; zero means for ever.
	Max time.Duration
	// PingAfter is how long the peer may be silent, while this end has streams open, until
	// it is sent a PING, and PingTimeout how long it may be silent after that; then the
	// connection ends. Zero means that the peer may be silent for ever, and
	// DefaultPingTimeout.
	PingAfter, PingTimeout time.Duration
	// Memory bounds the bytes that wait on all connections that share it; nil means the
	// default, for this connection alone.
	Memory *Memory
}

// Conn is one connection. Its methods are safe for concurrent use.
type Conn struct {
	cfg  Config
	link *tunnel.Link

	reader  reader
	running sync.WaitGroup // the goroutines that the connection has started

	mu      sync.Mutex // guards the fields below, and those of the streams
	streams map[uint32]*Stream
	serving int // streams that are open or whose Serve has not returned
	open    int // streams that the peer has opened and that are open
	ours    int // streams that this end has opened and that are open
	ids     ids
	resets  recentResets
	out     output
	flow    flow
	life    life
	alive   alive
	peer    peerSettings // what the peer has announced
	err     error        // why the connection has ended; nil while it lasts
	changed sync.Cond    // wakes those who wait in Open

	greeted, closed chan struct{} // closed when the SETTINGS of the peer have come, and when err is set; nil for a server
}

// peerSettings are the settings of the peer (RFC 9113 section 6.5.2).
type peerSettings struct {
	seen       bool
	window     int64
	maxFrame   int
	maxStreams uint32
}

// ids knows which streams have been opened.
type ids struct {
	client bool
	last   uint32 // the highest id of a stream that the peer has opened
	opened uint32 // how many streams the peer has opened
	next   uint32 // the id of the next stream that this end opens
}

// isOurs reports whether this end opens the stream with an id.
func (i *ids) isOurs(id uint32) bool { return (id%2 == 1) == i.client }

// isIdle reports whether a stream has not been opened.
func (i *ids) isIdle(id uint32) bool {
	if i.isOurs(id) {
		return id >= i.next
	}
	return id > i.last
}

// take notes that the peer has opened a stream.
func (i *ids) take(id uint32) {
	i.last = id
	i.opened++
}

// hasSkipped reports whether the peer has left out ids below last.
func (i *ids) hasSkipped() bool { return i.opened < i.last/2+i.last%2 }

// New returns a connection on a link. Run runs it.
func New(cfg Config, link *tunnel.Link) *Conn {
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, DefaultMaxStreams)
	cfg.HeadLimit = cmp.Or(cfg.HeadLimit, DefaultHeadLimit)
	cfg.HeadTimeout = cmp.Or(cfg.HeadTimeout, DefaultHeadTimeout)
	cfg.WriteTimeout = cmp.Or(cfg.WriteTimeout, DefaultWriteTime)
	cfg.PingTimeout = cmp.Or(cfg.PingTimeout, DefaultPingTimeout)
	if cfg.Memory == nil {
		cfg.Memory = NewMemory(0)
	}
	c := &Conn{
		cfg: cfg, link: link, streams: make(map[uint32]*Stream), ids: ids{client: cfg.Client, next: 1},
		// A client may assume 100 streams until it has seen SETTINGS (RFC 9113 section 6.5.2).
		peer: peerSettings{window: initialWindow, maxFrame: 16 << 10, maxStreams: 100},
	}
	c.flow = flow{conn: c, sendWindow: initialWindow, recvWindow: initialWindow}
	c.life.conn, c.alive.conn, c.changed.L = c, c, &c.mu
	if cfg.Client {
		c.greeted, c.closed = make(chan struct{}), make(chan struct{})
	}
	c.resets.most = cfg.MaxStreams // as many may be reset at once
	c.reader.init(c)
	c.out.init(c)
	c.start()
	return c
}

// start queues what this end must send first.
func (c *Conn) start() {
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		{ID: http2.SettingMaxFrameSize, Val: maxFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.HeadLimit)}, //nolint:gosec // G115: the limit is a small number
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Client {
		_, _ = c.out.Write([]byte(Preface)) // it returns no error
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.cfg.MaxStreams)}) //nolint:gosec // G115: as above
	}
	_ = c.out.frames.WriteSettings(settings...)
	c.flow.grant(connWindow - initialWindow)
	c.life.watchIdle()
	c.alive.watch()
}

// Error says why a connection has ended for what the peer has sent.
type Error struct {
	Code http2.ErrCode
	Text string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Code, e.Text) }

// IsFlood reports whether the peer has sent more than it may without carrying anything.
func (e *Error) IsFlood() bool { return e.Code == http2.ErrCodeEnhanceYourCalm }

// violation returns an error for what the peer has sent.
func violation(code http2.ErrCode, text string) error { return &Error{code, text} }

// ErrClosed is the error of a connection that this end has closed, or whose peer has
// closed it in order.
var ErrClosed error = closedError("the connection is closed")

// closedError is an error for which net.ErrClosed stands as well.
type closedError string

// Error implements error.
func (e closedError) Error() string { return string(e) }

// Is makes the error a net.ErrClosed.
func (closedError) Is(target error) bool { return target == net.ErrClosed }

// Run reads the connection until it ends, and returns why: an *Error for a peer that has
// broken the protocol, ErrClosed after an orderly end, or else the error of the
// connection. Before that, all streams have ended and Serve has returned for each. early
// are bytes that were read before. Run closes the link. The end of ctx ends the
// connection.
func (c *Conn) Run(ctx context.Context, early []byte) error {
	c.reader.in.early, c.reader.ctx = early, ctx
	stop := context.AfterFunc(ctx, func() { c.end(context.Cause(ctx)) })
	defer stop()
	if c.cfg.Max > 0 {
		timer := time.AfterFunc(c.cfg.Max, c.Leave)
		defer timer.Stop()
	}
	var err error
	for err == nil {
		err = c.reader.readFrame()
	}
	c.end(explain(err, c.reader.framer))
	c.running.Wait()
	c.reader.in.release()
	c.sayGoodbye()
	return c.failure()
}

// failure returns why the connection has ended; nil while it lasts.
func (c *Conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and all its streams.
func (c *Conn) Close() { c.end(ErrClosed) }

// end ends the connection. Only the first error counts.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(err)
}

// endLocked does what end does. The caller holds mu.
func (c *Conn) endLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if c.closed != nil {
		close(c.closed)
	}
	c.life.stop()
	c.alive.stop()
	c.flow.stop()
	for _, s := range c.streams {
		s.closeLocked(err)
	}
	c.changed.Broadcast()
	c.out.drained.Broadcast()
	past := time.Unix(1, 0)
	until := past
	if saysGoodbye(err) {
		until = time.Now().Add(goodbyeTime) // a write that is cut in the middle would be the last one
	}
	_ = c.link.SetReadDeadline(past) // an error means that the connection is closed
	_ = c.link.SetWriteDeadline(until)
}

// saysGoodbye reports whether the peer is told that the connection ends.
func saysGoodbye(err error) bool {
	_, broken := errors.AsType[*Error](err)
	return broken || errors.Is(err, ErrClosed)
}

// sayGoodbye tells the peer why the connection ends, if it can be told, and closes the
// link.
func (c *Conn) sayGoodbye() {
	err := c.failure()
	if !saysGoodbye(err) {
		c.link.Close(false)
		return
	}
	code, text := http2.ErrCodeNo, ""
	if coded, broken := errors.AsType[*Error](err); broken {
		code, text = coded.Code, coded.Text
	}
	c.out.writing.Lock()
	defer c.out.writing.Unlock()
	c.mu.Lock()
	if !c.life.final || code != http2.ErrCodeNo { // it was said before
		_ = c.out.frames.WriteGoAway(c.life.lastTaken(), code, []byte(text))
	}
	out := c.out.queue
	c.out.queue = nil
	c.mu.Unlock()
	_ = c.link.SetWriteDeadline(time.Now().Add(goodbyeTime))
	_, werr := c.link.Write(out)
	c.link.Close(werr == nil)
}

// goodbyeTime is how long writing the last frames may take.
const goodbyeTime = time.Second

// Leave asks the peer to open no more streams. The connection ends when the last one has
// ended. A second call does nothing.
func (c *Conn) Leave() {
	c.mu.Lock()
	c.life.leave()
	c.mu.Unlock()
	c.out.flush()
}

// CloseIdle ends the connection if there is no stream, and does what Leave does otherwise.
func (c *Conn) CloseIdle() {
	go c.Leave() // it may wait for a peer that does not read
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serving == 0 {
		c.endLocked(ErrClosed)
	}
}
