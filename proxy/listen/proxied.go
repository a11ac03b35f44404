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

// Sizes of PROXY protocol headers (see its specification, sections 2.1 and 2.2).
const (
	proxiedStart = 12      // first bytes, which show the version
	proxiedMax1  = 107     // largest header of version 1
	proxiedFixed = 16      // first part of a header of version 2, which ends with the length of the rest
	proxiedMax2  = 4 << 10 // largest length of the rest that is accepted
)

var (
	errNoHeader    = errors.New("the connection does not begin with one")
	errHeaderLong  = errors.New("it is too long")
	errHeaderOther = errors.New("it does not describe a TCP connection")
)

// readProxyHeader reads the PROXY protocol header at the start of a connection, and not a
// byte more, since the following bytes are read from the socket. It returns the caller's
// address, or an invalid one if the peer connects for itself (LOCAL) or knows no address
// (UNKNOWN of version 1, UNSPEC of version 2): the address of the connection then counts.
// io.EOF means that the peer left and sent nothing.
func readProxyHeader(conn io.Reader) (netip.AddrPort, error) {
	b, err := readHeader(conn)
	if errors.Is(err, io.EOF) {
		return netip.AddrPort{}, err
	}
	if err == nil && isUnspecified(b) { // the library refuses it, which section 2.2 allows
		return netip.AddrPort{}, nil
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

// isUnspecified reports whether a header is of version 2 with the command PROXY and the
// family UNSPEC.
func isUnspecified(b []byte) bool {
	const version2, command, unspecified = 0x20, 0x01, 0x00
	return bytes.HasPrefix(b, proxyproto.SIGV2) && b[proxiedStart] == version2|command && b[proxiedStart+1] == unspecified
}

// readHeader returns the unparsed bytes of the header.
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

// readLine reads a header of version 1 to the end of its line.
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

// readFull reads a later part of a header, before which the connection must not end.
func readFull(conn io.Reader, b []byte) error {
	_, err := io.ReadFull(conn, b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
