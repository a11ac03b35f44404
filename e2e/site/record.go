package site

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// Record has the fields of a record in the native form that tests and measurements read.
// A field that a record does not have is zero.
type Record struct {
	Time        time.Time `json:"time"`
	Event       string    `json:"event"`
	ID          string    `json:"id"`
	Listener    string    `json:"listener"`
	Wire        string    `json:"wire"`
	Client      string    `json:"client"`
	Identity    string    `json:"identity"`
	Protocol    string    `json:"protocol"`
	Host        string    `json:"host"`
	Address     string    `json:"address"`
	Class       string    `json:"address_class"`
	Verdict     string    `json:"verdict"`
	Reason      string    `json:"reason"`
	Rule        string    `json:"rule"`
	Status      int       `json:"status"`
	Policy      string    `json:"policy"`
	Generation  uint64    `json:"generation"`
	Up          int64     `json:"up"`
	Down        int64     `json:"down"`
	ResolveMS   float64   `json:"resolve_ms"`
	DialMS      float64   `json:"dial_ms"`
	DurationMS  float64   `json:"duration_ms"`
	CloseReason string    `json:"close_reason"`
	Detail      string    `json:"detail"`
	TraceID     string    `json:"trace_id"`
	SpanID      string    `json:"span_id"`
}

// ParseRecords parses whole lines. It skips an incomplete line at the end, which is still
// being written or was torn.
func ParseRecords(text string) ([]Record, error) {
	var all []Record
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("record %q: %w", line, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// ReadRecords parses the records in a file.
func ReadRecords(path string) ([]Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseRecords(string(data))
}
