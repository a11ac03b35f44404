package main

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// countSpans returns the number of spans in an ExportTraceServiceRequest. It descends
// only into the fields that lead to spans, because to decode all of it would take
// processor time from the program that is measured.
func countSpans(request []byte) (int64, error) {
	const resourceSpans, scopeSpans, spans = 1, 2, 2
	return count(request, resourceSpans, scopeSpans, spans)
}

// count returns the number of fields at the end of the path.
func count(message []byte, path ...protowire.Number) (int64, error) {
	if len(path) == 0 {
		return 1, nil
	}
	var total int64
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0, fmt.Errorf("protobuf: %w", protowire.ParseError(n))
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return 0, fmt.Errorf("protobuf: %w", protowire.ParseError(n))
		}
		if number == path[0] && kind == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(message) // ConsumeFieldValue has checked the length
			found, err := count(inner, path[1:]...)
			if err != nil {
				return 0, err
			}
			total += found
		}
		message = message[n:]
	}
	return total, nil
}
