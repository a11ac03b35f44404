package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

const (
	// streamIdle is how long a connection stays open without an answer.
	streamIdle = 10 * time.Second
	// maxInStream bounds the questions that wait in one connection. It has room for all
	// questions that are with servers, so that the slow ones of one caller do not lock
	// out others.
	maxInStream = maxFlights
)

var (
	errStreamEnded = errors.New("the connection ended before the answer")
	errStreamFull  = errors.New("too many questions wait in the connection")
)

// streams manages the connection to one server over TCP or TLS. The connection is
// opened when it is needed, and shared by all questions (RFC 7766 section 6.2.1).
type streams struct {
	dial        func(ctx context.Context) (net.Conn, error)
	descriptors *limit.Descriptors

	opening chan struct{} // holds a token while current is read or dialled
	current *stream       // nil before the first question
	readers sync.WaitGroup
	closed  bool
}

func newStreams(dial func(ctx context.Context) (net.Conn, error), descriptors *limit.Descriptors) *streams {
	return &streams{dial: dial, descriptors: descriptors, opening: make(chan struct{}, 1)}
}

// ask asks over the current connection. If that connection was open before and ends
// without an answer, ask asks once more over a new one, because servers close connections
// at any time.
func (s *streams) ask(ctx context.Context, q Question, query newQuery) (*wire.Message, error) {
	msg, opened, err := s.try(ctx, q, query)
	if errors.Is(err, errStreamEnded) && !opened {
		msg, _, err = s.try(ctx, q, query)
	}
	return msg, err
}

func (s *streams) try(ctx context.Context, q Question, query newQuery) (msg *wire.Message, opened bool, err error) {
	st, opened, err := s.open(ctx)
	if err != nil {
		return nil, opened, ended(ctx, err)
	}
	msg, err = st.ask(ctx, q, query)
	return msg, opened, err
}

// open returns the current connection, and whether it is new.
func (s *streams) open(ctx context.Context) (st *stream, opened bool, err error) {
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if s.closed {
		return nil, false, errClosed
	}
	if s.current != nil && s.current.usable() {
		return s.current, false, nil
	}
	if !s.descriptors.Take(1) {
		return nil, false, limit.ErrNoDescriptor
	}
	conn, err := s.dial(ctx)
	if err != nil {
		s.descriptors.Give(1)
		return nil, false, err
	}
	current := &stream{conn: conn, waiting: map[uint16]chan []byte{}, ended: make(chan struct{})}
	s.current = current
	s.readers.Go(func() {
		defer s.descriptors.Give(1)
		current.read()
	})
	return current, true, nil
}

// close closes the connection and waits for its reader. There must be no more
// questions.
func (s *streams) close() {
	s.opening <- struct{}{}
	s.closed = true
	if s.current != nil {
		_ = s.current.conn.Close()
	}
	<-s.opening
	s.readers.Wait()
}

// stream is one connection with the questions that wait for answers in it.
type stream struct {
	conn         net.Conn
	write        sync.Mutex // locked while a query is written
	ended        chan struct{}
	messagesRead atomic.Uint64 // number of messages that have been read

	mu      sync.Mutex
	waiting map[uint16]chan []byte // by id; nil when the connection must not be used any more
}

func (s *stream) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting != nil
}

// ask asks one question. The connection ends after an answer that does not belong to
// the question, but not after one that cannot be used: its content depends on the owner
// of the name, and other questions wait in the connection.
func (s *stream) ask(ctx context.Context, q Question, newQuery newQuery) (*wire.Message, error) {
	query, answer, err := s.enter(q, newQuery)
	if err != nil {
		return nil, err
	}
	defer s.leave(query.ID())
	heard := s.messagesRead.Load()
	if err := s.send(ctx, query.Packet()); err != nil {
		return nil, errors.Join(errStreamEnded, err)
	}
	select {
	case packet := <-answer:
		return s.parse(query, packet)
	case <-s.ended:
		select {
		case packet := <-answer: // it came just before the end
			return s.parse(query, packet)
		default:
		}
		return nil, errStreamEnded
	case <-ctx.Done():
		if s.messagesRead.Load() == heard { // nothing came all the time, so the server may be gone
			s.abort()
		}
		return nil, ctx.Err()
	}
}

func (s *stream) parse(query *wire.Query, packet []byte) (*wire.Message, error) {
	msg, err := query.Parse(packet)
	if err != nil && !wire.Answered(err) {
		s.abort()
	}
	return msg, err
}

// enter returns a query with an id that no other waiting query has.
func (s *stream) enter(q Question, newQuery newQuery) (*wire.Query, chan []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.waiting == nil:
		return nil, nil, errStreamEnded
	case len(s.waiting) >= maxInStream:
		return nil, nil, errStreamFull
	}
	for {
		query, err := newQuery(q, false)
		if err != nil {
			return nil, nil, err
		}
		if _, taken := s.waiting[query.ID()]; !taken {
			answer := make(chan []byte, 1)
			s.waiting[query.ID()] = answer
			return query, answer, nil
		}
	}
}

func (s *stream) leave(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, id)
}

func (s *stream) send(ctx context.Context, packet []byte) error {
	framed := make([]byte, 0, 2+len(packet))
	framed = binary.BigEndian.AppendUint16(framed, uint16(len(packet))) //nolint:gosec // G115: a query of one name
	framed = append(framed, packet...)
	s.write.Lock()
	defer s.write.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(tryTimeout)
	}
	_ = s.conn.SetWriteDeadline(deadline)
	if _, err := s.conn.Write(framed); err != nil {
		s.abort() // part of it may have been written
		return err
	}
	return nil
}

// read passes answers to the waiting questions, until the connection ends or is idle
// for too long.
func (s *stream) read() {
	defer s.end()
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(streamIdle))
		packet, err := readFrame(s.conn)
		if err != nil {
			return
		}
		s.messagesRead.Add(1)
		s.mu.Lock()
		var answer chan []byte
		if len(packet) >= 2 {
			answer = s.waiting[binary.BigEndian.Uint16(packet)]
		}
		if answer != nil {
			select {
			case answer <- packet:
			default: // it has an answer already
			}
		}
		s.mu.Unlock()
	}
}

// end fails all questions that still wait.
func (s *stream) end() {
	s.abort()
	close(s.ended)
}

// abort closes the connection, and lets no more questions wait in it.
func (s *stream) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = nil
	_ = s.conn.Close()
}

// readFrame reads one message after its length.
func readFrame(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	packet := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, packet); err != nil {
		return nil, fmt.Errorf("reading a message: %w", err)
	}
	return packet, nil
}
