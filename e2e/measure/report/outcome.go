package report

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Error reports that a measurement was finished and has faults.
type Error struct {
	// Faults describe what is wrong.
	Faults []string
}

// Error returns the faults, one in a line.
func (e *Error) Error() string { return strings.Join(e.Faults, "\n") }

// Check returns an [*Error] with the faults, or nil if there are none.
func Check(faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	return &Error{Faults: faults}
}

// Write writes a table to w, and to a file unless its name is "".
func Write(table fmt.Stringer, w io.Writer, file string) error {
	text := table.String()
	if _, err := io.WriteString(w, text); err != nil || file == "" {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}

// Processor returns the name of the machine's processor, if the system shows it.
func Processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // after an error, the name is unknown
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor unknown"
}
