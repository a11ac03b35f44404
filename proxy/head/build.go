package head

import (
	"fmt"
	"slices"
	"strings"
)

// Build returns the head of a request over HTTP/2. target has the form that it would have in
// a request line of HTTP/1.1, and fields are without the pseudo-header fields. The rules for
// the method, the target, the fields and their number are those of Parse, except that Host
// may be missing. Build also refuses fields that HTTP/2 does not allow (RFC 9113 section
// 8.2), and joins several cookie fields to one. Its errors name the number of a field,
// counted from 1. The caller bounds the number of bytes.
func Build(method, target string, fields []Field) (*Head, error) {
	if problem := explainPart("method", method, tokenEnd(method)); problem != "" {
		return nil, fmt.Errorf("%s: %w", problem, ErrRequestLine)
	}
	if problem := explainPart("target", target, targetEnd(target)); problem != "" {
		return nil, fmt.Errorf("%s: %w", problem, ErrRequestLine)
	}
	if err := checkNumber(len(fields)); err != nil {
		return nil, err
	}
	h := &Head{Method: method, Target: target, Major: 2, Fields: make([]Field, 0, len(fields))}
	members := 0
	for i, f := range fields {
		if err := h.add(f, explainField(f), &members); err != nil {
			return nil, fmt.Errorf("field %d: %w", i+1, err)
		}
	}
	h.joinCookies()
	return h, nil
}

// explainPart says what is wrong with a part of a request that must not be empty, and of
// which the first valid bytes are allowed. It returns "" if nothing is wrong.
func explainPart(part, text string, valid int) string {
	switch {
	case text == "":
		return "no " + part
	case valid < len(text):
		return badByte(text[valid], valid) + " in the " + part
	}
	return ""
}

// explainField says what is wrong with a field of an HTTP/2 request, or returns "".
func explainField(f Field) string {
	if problem := explainPart("name", f.Name, tokenEnd(f.Name)); problem != "" {
		return problem
	}
	if at := valueEnd(f.Value); at < len(f.Value) {
		return badByte(f.Value[at], at) + " in the value"
	}
	switch {
	case strings.ToLower(f.Name) != f.Name:
		return "a capital letter in the name" // RFC 9113 section 8.2.1
	case strings.Trim(f.Value, " \t") != f.Value:
		return "white space around the value" // RFC 9113 section 8.2.1
	case f.Name == "te" && f.Value != "trailers":
		return "TE is not trailers alone" // RFC 9113 section 8.2.2
	case concernsConnection(f.Name):
		return "a field that only a connection of HTTP/1.1 has" // RFC 9113 section 8.2.2
	}
	return ""
}

// concernsConnection reports whether a field concerns the connection of an HTTP/1.1 request (RFC
// 9113 section 8.2.2).
func concernsConnection(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// joinCookies joins the values of all cookie fields in the first of them. Clients of HTTP/2
// may split the field so that it compresses better (RFC 9113 section 8.2.3).
func (h *Head) joinCookies() {
	const name = "cookie"
	values := slices.Collect(h.Values(name))
	if len(values) < 2 {
		return
	}
	isCookie := func(f Field) bool { return f.Name == name }
	first := slices.IndexFunc(h.Fields, isCookie)
	h.Fields[first].Value = strings.TrimRight(strings.Join(values, "; "), " ") // the last value may be empty
	rest := slices.DeleteFunc(h.Fields[first+1:], isCookie)
	h.Fields = h.Fields[:first+1+len(rest)]
}
