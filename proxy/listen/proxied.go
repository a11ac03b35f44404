package listen

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	proxyproto "github.com/pires/go-proxyproto"
)

// The sizes of PROXY protocol headers (its specification, sections 2.1 and 2.2).
const (
	proxiedStart = 12      // enough to tell the versions apart
	proxiedMax1  = 107     // of version 1
	proxiedFixed = 16      // of version 2, before what its length counts
	proxiedMax2  = 4 << 10 // what its length may be
)

var (
	errNoHeader    = errors.New("the connection does not begin with one")
	errHeaderLong  = errors.New("it is too long")
	errHeaderOther = errors.New("it is of no TCP connection")
)

// proxied reads the PROXY protocol header that a connection begins with, and
// not a byte more, since what follows is read from the socket. It returns the
// address that the header says the caller has; an invalid one if the peer
// speaks for itself. io.EOF means that nothing came, and the peer has gone.
func proxied(conn io.Reader) (netip.AddrPort, error) {
	b, err := readHeader(conn)
	if errors.Is(err, io.EOF) {
		return netip.AddrPort{}, err
	}
	var h *proxyproto.Header
	if err == nil {
		h, err = proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header: %w", err)
	}
	if h.Command.IsLocal() {
		return netip.AddrPort{}, nil
	}
	source, ok := h.SourceAddr.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header: %w", errHeaderOther)
	}
	ap := source.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// readHeader returns the bytes of the header, unparsed.
func readHeader(conn io.Reader) ([]byte, error) {
	b := make([]byte, proxiedFixed, proxiedMax1)
	if n, err := io.ReadFull(conn, b[:proxiedStart]); n == 0 && isGone(err) {
		return nil, io.EOF
	} else if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(b, proxyproto.SIGV1):
		return readLine(conn, b[:proxiedStart])
	case !bytes.HasPrefix(b, proxyproto.SIGV2):
		return nil, errNoHeader
	}
	if err := readFull(conn, b[proxiedStart:]); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint16(b[proxiedFixed-2:]))
	if length > proxiedMax2 {
		return nil, errHeaderLong
	}
	b = append(b, make([]byte, length)...)
	return b, readFull(conn, b[proxiedFixed:])
}

// readLine reads on to the end of the line.
func readLine(conn io.Reader, b []byte) ([]byte, error) {
	for b[len(b)-1] != '\n' {
		if len(b) == proxiedMax1 {
			return nil, errHeaderLong
		}
		b = b[:len(b)+1]
		if err := readFull(conn, b[len(b)-1:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// readFull is for what must come once the header has begun.
func readFull(conn io.Reader, b []byte) error {
	_, err := io.ReadFull(conn, b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
