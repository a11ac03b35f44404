package head

import (
	"fmt"
	"io"
	"strings"
)

// Parse parses raw, which must be one complete head with its final empty line and nothing
// after it. It keeps no reference to raw. The error for an incomplete head is
// io.ErrUnexpectedEOF; all other errors are those of this package. Parse bounds the
// number of fields by MaxFields and that of their members by MaxMembers; the caller
// bounds the number of bytes.
func Parse(raw []byte) (*Head, error) {
	if len(raw) > 0 && !isTchar(raw[0]) {
		return nil, fmt.Errorf("line 1: %s in the method: %w", badByte(raw[0], 0), ErrRequestLine)
	}
	text := string(raw)
	line, rest, ok := strings.Cut(text, "\n")
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	h := &Head{Major: 1}
	var err error
	if h.Method, h.Target, h.Minor, err = parseRequestLine(line); err != nil {
		return nil, err
	}
	if err := h.parseFields(rest); err != nil {
		return nil, err
	}
	if !h.IsHTTP10() && !h.HasHost {
		return nil, ErrMissingHost
	}
	return h, nil
}

// parseRequestLine splits a request line without its LF. The Reader calls it with bytes,
// before the rest of the head has arrived, and Parse with a part of the string that holds
// the whole head.
func parseRequestLine[T string | []byte](line T) (method, target T, minor int, err error) {
	var none T
	bad := func(what string, err error) (T, T, int, error) {
		return none, none, 0, fmt.Errorf("line 1: %s: %w", what, err)
	}
	i, j := splitRequestLine(line)
	if j == 0 {
		return bad(explainRequestLine(line, i), ErrRequestLine)
	}
	const form = "HTTP/d.d\r"
	version := line[j+1:]
	if len(version) == 0 || version[len(version)-1] != '\r' {
		return bad("no carriage return at its end", ErrRequestLine)
	}
	if len(version) != len(form) || string(version[:5]) != form[:5] || version[6] != '.' || !isDigit(version[5]) || !isDigit(version[7]) {
		return bad("no HTTP version behind the target", ErrRequestLine)
	}
	if version[5] != '1' || version[7] > '1' {
		return bad("HTTP/"+string(version[5:8]), ErrVersion)
	}
	return line[:i], line[i+1 : j], int(version[7] - '0'), nil
}

// explainRequestLine returns a message that says why a line has no method if method is 0, and
// otherwise why it has no target after the method, which ends at the offset method.
func explainRequestLine[T string | []byte](line T, method int) string {
	at, part := method+1, "target"
	if method == 0 {
		at, part = tokenEnd(line), "method"
	} else {
		at += targetEnd(line[at:])
	}
	switch {
	case at >= len(line) || line[at] == '\r' && at == len(line)-1:
		return "it ends behind the " + part
	case line[at] == ' ':
		return "no " + part
	}
	return badByte(line[at], at) + " in the " + part
}

// badByte returns a text with the number of a byte and its column in the line.
func badByte(c byte, at int) string { return fmt.Sprintf("byte 0x%02x at column %d", c, at+1) }

// splitRequestLine returns the offsets at which the method and the target of a line end.
// An offset is 0 if the part is malformed or no space follows it. Non-ASCII bytes are
// accepted in the target, because the caller parses it.
func splitRequestLine[T string | []byte](line T) (method, target int) {
	i := tokenEnd(line)
	if i == 0 || i == len(line) || line[i] != ' ' {
		return 0, 0
	}
	j := i + 1 + targetEnd(line[i+1:])
	if j == i+1 || j == len(line) || line[j] != ' ' {
		return i, 0
	}
	return i, j
}

// tokenEnd returns the length of the token that text begins with.
func tokenEnd[T string | []byte](text T) int {
	i := 0
	for i < len(text) && isTchar(text[i]) {
		i++
	}
	return i
}

// targetEnd returns the number of bytes that a target may have and that text begins with.
func targetEnd[T string | []byte](text T) int {
	i := 0
	for i < len(text) && text[i] > ' ' && text[i] != 0x7f {
		i++
	}
	return i
}

// parseFields parses the lines after the request line, up to and including the empty
// line.
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
		f, problem := parseField(line)
		if err := h.add(f, problem, &members); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		text = rest
	}
}

// add adds a field to the head, unless problem says what is wrong with it or the head has
// too many. members counts the names of fields that the fields so far list.
func (h *Head) add(f Field, problem string, members *int) error {
	if err := checkNumber(len(h.Fields) + 1); err != nil {
		return err
	}
	if problem != "" {
		return fmt.Errorf("%s: %w", problem, ErrHeader)
	}
	if sameName(f.Name, "Host") {
		if h.HasHost {
			return ErrDuplicateHost
		}
		h.Host, h.HasHost = f.Value, true
	}
	if *members += membersOf(f); *members > MaxMembers {
		return fmt.Errorf("%d names of fields in Connection and Trailer, more than %d: %w", *members, MaxMembers, ErrTooLarge)
	}
	h.Fields = append(h.Fields, f)
	return nil
}

// checkNumber returns an error if a head of n fields has too many.
func checkNumber(n int) error {
	if n > MaxFields {
		return fmt.Errorf("field %d, and no head may have more than %d: %w", MaxFields+1, MaxFields, ErrTooLarge)
	}
	return nil
}

// membersOf returns the number of field names that a Connection or Trailer field lists,
// and 0 for any other field.
func membersOf(f Field) int {
	if !sameName(f.Name, "Connection") && !sameName(f.Name, "Trailer") {
		return 0
	}
	return 1 + strings.Count(f.Value, ",")
}

// parseField parses a field line without its LF. problem says what is wrong with the
// line, or is "". A folded line starts with white space and so has no name.
func parseField(line string) (f Field, problem string) {
	i := tokenEnd(line)
	last := len(line) - 1
	switch {
	case last < 0 || line[last] != '\r':
		return Field{}, "no carriage return at its end"
	case i == last:
		return Field{}, "no colon behind the name"
	case line[i] != ':':
		return Field{}, badByte(line[i], i) + " in the name"
	case i == 0:
		return Field{}, "no name"
	}
	value := line[i+1 : last]
	if k := valueEnd(value); k < len(value) {
		return Field{}, badByte(value[k], i+1+k) + " in the value"
	}
	return Field{Name: line[:i], Value: strings.Trim(value, " \t")}, ""
}

// valueEnd returns the number of bytes that a value may have and that text begins with.
func valueEnd(text string) int {
	for i := range len(text) {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return len(text)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// IsToken reports whether s is a token (RFC 9110 section 5.6.2).
func IsToken(s string) bool { return s != "" && tokenEnd(s) == len(s) }

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
