package front

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"
)

// respond writes an answer of the gateway itself. It reports whether another request may
// follow on the connection: none may if bytes of the request's body have not been read,
// since they would be read as a request.
func (c *h1) respond(r *Request, a *Answer) (another bool) {
	keep := !a.Last && !c.front.IsDraining() && !r.hasUnread() && !r.Head.IsHTTP10() && !r.Head.Lists("Connection", "close")
	err := c.write(a.Response.encode(keep, r.Method == http.MethodHead))
	a.done(err)
	switch {
	case err != nil:
		return false
	case !keep:
		return c.end(Linger)
	}
	c.answeredPlain = c.answeredPlain || a.WasAllowed
	return true
}

// fields returns the fields of the response, with those that every front adds.
func (r *Response) fields() http.Header {
	fields := http.Header{
		"Date":           {time.Now().UTC().Format(http.TimeFormat)},
		"Content-Length": {strconv.Itoa(len(r.Body))},
	}
	maps.Copy(fields, r.Fields)
	return fields
}

// encode returns the response in the form of HTTP/1.1.
func (r *Response) encode(keep, bodyless bool) []byte {
	fields := r.fields()
	if !keep {
		fields.Set("Connection", "close")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", r.Status, http.StatusText(r.Status))
	_ = fields.Write(&b) // a buffer takes every byte
	b.WriteString("\r\n")
	if !bodyless {
		b.Write(r.Body)
	}
	return b.Bytes()
}
