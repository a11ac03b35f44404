package head

import (
	"fmt"
	"io"
	"strings"
)

// Parse parses raw, which must be one complete head with its final empty line
// and nothing behind it. It keeps no reference to raw. A head that stops short
// is io.ErrUnexpectedEOF; the other errors are this package's. The number of
// fields is bounded by MaxFields and that of what they list by MaxMembers, the
// number of bytes is up to the caller.
func Parse(raw []byte) (*Head, error) {
	if len(raw) > 0 && !isTchar(raw[0]) {
		return nil, fmt.Errorf("line 1: %w", ErrRequestLine)
	}
	text := string(raw)
	line, rest, ok := strings.Cut(text, "\n")
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	h := new(Head)
	var err error
	if h.Method, h.Target, h.Minor, err = parseRequestLine(line); err != nil {
		return nil, err
	}
	if err := h.parseFields(rest); err != nil {
		return nil, err
	}
	if h.Minor == 1 && !h.HasHost {
		return nil, ErrMissingHost
	}
	return h, nil
}

// parseRequestLine splits a line that is complete but for its LF. The reader
// asks it about bytes, before the rest of the head has come, and Parse about
// the string that the Head will be made of.
func parseRequestLine[T string | []byte](line T) (method, target T, minor int, err error) {
	var none T
	bad := func(err error) (T, T, int, error) {
		return none, none, 0, fmt.Errorf("line 1: %w", err)
	}
	i, j := splitRequestLine(line)
	if j == 0 {
		return bad(ErrRequestLine)
	}
	const form = "HTTP/d.d\r"
	version := line[j+1:]
	if len(version) != len(form) || string(version[:5]) != form[:5] || version[6] != '.' || version[8] != '\r' {
		return bad(ErrRequestLine)
	}
	if !isDigit(version[5]) || !isDigit(version[7]) {
		return bad(ErrRequestLine)
	}
	if version[5] != '1' || version[7] > '1' {
		return bad(ErrVersion)
	}
	return line[:i], line[i+1 : j], int(version[7] - '0'), nil
}

// splitRequestLine returns where the method of a line ends, and behind a space
// the target; either is 0 if it is malformed, or no space ends it. Which bytes
// beyond ASCII a target may have is for its own parser to say.
func splitRequestLine[T string | []byte](line T) (method, target int) {
	i := 0
	for i < len(line) && isTchar(line[i]) {
		i++
	}
	if i == 0 || i == len(line) || line[i] != ' ' {
		return 0, 0
	}
	j := i + 1
	for j < len(line) && line[j] > ' ' && line[j] != 0x7f {
		j++
	}
	if j == i+1 || j == len(line) || line[j] != ' ' {
		return i, 0
	}
	return i, j
}

// parseFields parses the lines behind the request line, up to and including
// the empty one.
func (h *Head) parseFields(text string) error {
	if n := strings.Count(text, "\n") - 1; n > 0 {
		h.Fields = make([]Field, 0, min(n, MaxFields))
	}
	members := 0
	for number := 2; ; number++ {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			return io.ErrUnexpectedEOF
		}
		if line == "\r" {
			if rest != "" {
				return fmt.Errorf("bytes behind the head: %w", ErrHeader)
			}
			return nil
		}
		if len(h.Fields) == MaxFields {
			return fmt.Errorf("line %d: more than %d fields: %w", number, MaxFields, ErrTooLarge)
		}
		f, ok := parseField(line)
		if !ok {
			return fmt.Errorf("line %d: %w", number, ErrHeader)
		}
		if sameName(f.Name, "Host") {
			if h.HasHost {
				return fmt.Errorf("line %d: %w", number, ErrDuplicateHost)
			}
			h.Host, h.HasHost = f.Value, true
		}
		if members += membersOf(f); members > MaxMembers {
			return fmt.Errorf("line %d: more than %d names of fields: %w", number, MaxMembers, ErrTooLarge)
		}
		h.Fields = append(h.Fields, f)
		text = rest
	}
}

// membersOf returns how many names of fields a field lists.
func membersOf(f Field) int {
	if !sameName(f.Name, "Connection") && !sameName(f.Name, "Trailer") {
		return 0
	}
	return 1 + strings.Count(f.Value, ",")
}

// parseField parses a line that is complete but for its LF. A folded line
// starts with white space and so has no name.
func parseField(line string) (f Field, ok bool) {
	i := 0
	for i < len(line) && isTchar(line[i]) {
		i++
	}
	last := len(line) - 1
	if i == 0 || i >= last || line[i] != ':' || line[last] != '\r' {
		return Field{}, false
	}
	value := line[i+1 : last]
	for k := range len(value) {
		if c := value[k]; c < ' ' && c != '\t' || c == 0x7f {
			return Field{}, false
		}
	}
	return Field{Name: line[:i], Value: strings.Trim(value, " \t")}, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// IsToken reports whether s is a token (RFC 9110 section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		if !isTchar(s[i]) {
			return false
		}
	}
	return s != ""
}

// isTchar reports whether c is a tchar (RFC 9110 section 5.6.2). The two
// masks hold one bit for each of the 128 ASCII codes.
func isTchar(c byte) bool {
	const (
		digits  = 0x3ff << '0'
		letters = 0x3ffffff<<('A'-64) | 0x3ffffff<<('a'-64)
		low     = digits | 1<<'!' | 1<<'#' | 1<<'$' | 1<<'%' | 1<<'&' | 1<<'\'' | 1<<'*' | 1<<'+' | 1<<'-' | 1<<'.'
		high    = letters | 1<<('^'-64) | 1<<('_'-64) | 1<<('`'-64) | 1<<('|'-64) | 1<<('~'-64)
	)
	switch {
	case c < 64:
		return uint64(low)>>c&1 == 1
	case c < 128:
		return uint64(high)>>(c-64)&1 == 1
	default:
		return false
	}
}
