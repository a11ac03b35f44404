package hello

import "strings"

// The extensions that are read.
const (
	extServerName = 0
	extECH        = 0xfe0d

	nameTypeHost = 0
)

// message reads a complete ClientHello across its records, whose headers have been
// checked. After the first error broken stays set, and all reads return zero values.
type message struct {
	rest     []byte // records that have not been read
	inRecord int    // bytes at the beginning of rest that belong to the current record
	left     int    // bytes of the message that have not been read
	broken   bool   // the message is malformed
}

// read reads the whole message (RFC 8446 section 4.1.2).
func (m *message) read() (Hello, error) {
	m.skip(1)
	m.left = m.uint(3)
	m.skip(2 + 32)      // version, random
	m.skip(m.vector(1)) // session ID
	m.skip(m.vector(2)) // cipher suites
	m.skip(m.vector(1)) // compression methods
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

// extensions reads the rest of the message. If one of the extensions that it reads comes
// twice the message is malformed (section 4.2), because another reader might take the
// other name.
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

// serverName reads the list of names, which ends when end bytes of the message are left,
// and returns its host_name. A second host_name makes the message malformed.
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

// vector reads the length of a vector, which has n bytes. The rest of the message must
// have that length at least.
func (m *message) vector(n int) int {
	length := m.uint(n)
	if length > m.left {
		m.broken = true
		return 0
	}
	return length
}

// uint reads a number of n bytes.
func (m *message) uint(n int) int {
	v := 0
	for range n {
		part := m.next(1)
		if part == nil {
			return 0
		}
		v = v<<8 | int(part[0])
	}
	return v
}

func (m *message) skip(n int) {
	for n > 0 {
		part := m.next(n)
		if part == nil {
			return
		}
		n -= len(part)
	}
}

// text returns the next n bytes, which may be in several records.
func (m *message) text(n int) string {
	part := m.next(n)
	if len(part) == n {
		return string(part)
	}
	var b strings.Builder
	for part != nil {
		b.Write(part)
		if n -= len(part); n == 0 {
			return b.String()
		}
		part = m.next(n)
	}
	return ""
}

// next returns the next bytes in the current record, at least one and at most n. It sets
// broken and returns nil if the message has fewer than n bytes left.
func (m *message) next(n int) []byte {
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
