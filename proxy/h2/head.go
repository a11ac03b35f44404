package h2

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A Head is the head of a request or of an answer as it came: its fields, pseudo-header
// fields among them, in their order. Nothing about them was checked.
type Head struct {
	Fields []Field
	// End says that neither data nor a trailer follows.
	End bool
	// TooLarge says that the head was larger than Config.HeadLimit, or had more than
	// maxFields fields. The rest is missing.
	TooLarge bool
}

// A Field is one field of a head.
type Field struct{ Name, Value string }

// Get returns the value of the first field with a name, or "" if there is none.
func (h *Head) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}

// maxFields is the largest number of fields of a head. A head of tiny fields needs many
// times its size in memory.
const maxFields = 300

// maxContinuations is the largest number of frames of one head.
const maxContinuations = 16

// headBlock reads heads. The decoder must read every head to its end, also of a stream
// that is refused, because it keeps a table of what has come before.
type headBlock struct {
	decoder *hpack.Decoder
	limit   int
	head    *Head // the head that is being read
	size    int   // its size so far, as RFC 9113 section 6.5.2 counts it
	raw     int   // its encoded size so far
}

func (b *headBlock) init(limit int) {
	b.limit = limit
	b.decoder = hpack.NewDecoder(4096, b.add) // RFC 9113 section 6.5.2: the table has 4,096 bytes unless SETTINGS say otherwise
	b.decoder.SetMaxStringLength(limit)
}

// add is called by the decoder for each field.
func (b *headBlock) add(f hpack.HeaderField) {
	if b.size += int(f.Size()); b.size > b.limit || len(b.head.Fields) == maxFields {
		b.head.TooLarge = true
		b.decoder.SetEmitEnabled(false)
		return
	}
	b.head.Fields = append(b.head.Fields, Field{f.Name, f.Value})
}

// readHead reads the rest of the head that begins with a frame.
func (r *reader) readHead(f *http2.HeadersFrame) (Head, error) {
	b := &r.block
	head := Head{End: f.StreamEnded()}
	b.head, b.size, b.raw = &head, 0, 0
	defer func() { b.head = nil }()
	b.decoder.SetEmitEnabled(true)
	text, ended := f.HeaderBlockFragment(), f.HeadersEnded()
	for frames := 0; ; frames++ {
		if b.raw = len(text); b.raw > b.limit || frames > maxContinuations {
			return head, violation(http2.ErrCodeEnhanceYourCalm, fmt.Sprintf("a head of more than %d bytes or %d frames", b.limit, maxContinuations))
		}
		if ended {
			break
		}
		if frames == 0 {
			text = slices.Clone(text) // the next frame is read into the same buffer
		}
		next, err := r.framer.ReadFrame()
		if err != nil {
			return head, err
		}
		more, ok := next.(*http2.ContinuationFrame)
		if !ok {
			return head, violation(http2.ErrCodeProtocol, "a head is interrupted by another frame")
		}
		text, ended = append(text, more.HeaderBlockFragment()...), more.HeadersEnded()
	}
	_, err := b.decoder.Write(text) // all at once: for a part, the decoder would keep a buffer of its own
	switch err = errors.Join(err, b.decoder.Close()); {
	case errors.Is(err, hpack.ErrStringLength):
		return head, violation(http2.ErrCodeEnhanceYourCalm, fmt.Sprintf("a head with a string of more than %d bytes", b.limit))
	case err != nil:
		return head, violation(http2.ErrCodeCompression, "a head cannot be decompressed")
	}
	return head, nil
}

// shrink frees the bytes of the last head, to which the decoder keeps a reference until it gets
// others. It gets an indexed field of the static table, which changes nothing else.
func (b *headBlock) shrink() {
	b.raw = 0
	b.decoder.SetEmitEnabled(false)
	_, _ = b.decoder.Write([]byte{0x82}) // it is valid, as is the end behind it
	_ = b.decoder.Close()
}
