package proxy

import (
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// A place holds the slots of a request. While it does, the connection is not closed for
// want of a slot. A request of HTTP/1.x has the slot of its connection; a stream has one of
// its own as well, because it may use as much as a connection.
type place struct {
	conn   *listen.Conn
	stream *limit.Slot // nil for a request of HTTP/1.x
	denied string      // why there is no slot; "" if there is one
	left   bool
}

// takePlace takes the place of a request. isStream says that it came on a stream.
func (s *session) takePlace(isStream bool) *place {
	p := &place{conn: s.conn}
	if !s.conn.Begin() {
		p.denied = "the connection was closed for another one"
		return p
	}
	if !isStream {
		return p
	}
	p.stream = new(limit.Slot)
	s.mu.Lock()
	cause := listen.EnterStream(s.conn, p.stream)
	s.mu.Unlock()
	if cause != limit.NoCause || !p.stream.Begin() {
		p.denied = "as many connections and streams are open as may be"
	}
	return p
}

// leave gives the slots back. A second call does nothing, nor does one of a nil place.
func (p *place) leave() {
	if p == nil || p.left {
		return
	}
	p.left = true
	if p.stream != nil {
		p.stream.Leave()
	}
	p.conn.End()
}
