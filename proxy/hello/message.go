package hello

import "strings"

// The extensions that are read.
const (
	extServerName = 0
	extECH        = 0xfe0d

	nameTypeHost = 0
)

// message reads a complete ClientHello across its records, whose headers were
// checked. Its first error stays, and reads after it give zeros.
type message struct {
	rest     []byte // records that were not read
	inRecord int    // bytes at the beginning of rest that belong to the current one
	left     int    // of the message
	broken   bool
}

// read reads the whole message (RFC 8446 section 4.1.2).
func (m *message) read() (Hello, error) {
	m.skip(1)
	m.left = m.uint(3)
	m.skip(2 + 32)      // version, random
	m.skip(m.vector(1)) // session
	m.skip(m.vector(2)) // cipher suites
	m.skip(m.vector(1)) // compression
	var h Hello
	if m.left > 0 {
		length := m.uint(2)
		m.broken = m.broken || length != m.left
		m.extensions(&h)
	}
	if m.broken || m.left != 0 {
		return Hello{}, ErrNotHello
	}
	return h, nil
}

// extensions reads what is left. An extension that comes twice makes the
// message invalid (section 4.2): two readers might read two names.
func (m *message) extensions(h *Hello) {
	named := false
	for m.left > 0 && !m.broken {
		kind := m.uint(2)
		length := m.vector(2)
		end := m.left - length
		switch kind {
		case extServerName:
			m.broken = m.broken || named
			named = true
			h.Name = m.serverName(end)
		case extECH:
			m.broken = m.broken || h.ECH
			h.ECH = true
			m.skip(length)
		default:
			m.skip(length)
		}
		m.broken = m.broken || m.left != end
	}
}

// serverName returns the one host_name of the list that ends where end bytes of
// the message are left.
func (m *message) serverName(end int) string {
	list := m.uint(2)
	m.broken = m.broken || list != m.left-end
	name := ""
	for m.left > end && !m.broken {
		kind := m.uint(1)
		length := m.vector(2)
		switch {
		case kind != nameTypeHost:
			m.skip(length)
		case name != "" || length == 0:
			m.broken = true
		default:
			name = m.text(length)
		}
	}
	if m.broken {
		return ""
	}
	return name
}

// vector reads a length of n bytes, which what is left of the message must have.
func (m *message) vector(n int) int {
	length := m.uint(n)
	if length > m.left {
		m.broken = true
		return 0
	}
	return length
}

func (m *message) uint(n int) int {
	v := 0
	for range n {
		part := m.take(1)
		if part == nil {
			return 0
		}
		v = v<<8 | int(part[0])
	}
	return v
}

func (m *message) skip(n int) {
	for n > 0 {
		part := m.take(n)
		if part == nil {
			return
		}
		n -= len(part)
	}
}

// text returns the next n bytes, which may lie in several records.
func (m *message) text(n int) string {
	part := m.take(n)
	if len(part) == n {
		return string(part)
	}
	var b strings.Builder
	for part != nil {
		b.Write(part)
		if n -= len(part); n == 0 {
			return b.String()
		}
		part = m.take(n)
	}
	return ""
}

// take returns the next bytes, at least one and at most n; nil is broken.
func (m *message) take(n int) []byte {
	if m.broken || n > m.left {
		m.broken = true
		return nil
	}
	if m.inRecord == 0 {
		if len(m.rest) < recordHeader {
			m.broken = true
			return nil
		}
		m.inRecord = int(m.rest[3])<<8 | int(m.rest[4])
		m.rest = m.rest[recordHeader:]
	}
	n = min(n, m.inRecord, len(m.rest))
	if n == 0 {
		m.broken = true
		return nil
	}
	part := m.rest[:n]
	m.rest, m.inRecord, m.left = m.rest[n:], m.inRecord-n, m.left-n
	return part
}
