package report

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Error says that something was measured to its end, and what is wrong with it.
type Error struct {
	// Faults are what is wrong.
	Faults []string
}

// Error returns the faults, a line each.
func (e *Error) Error() string { return strings.Join(e.Faults, "\n") }

// Check returns an [*Error] unless there are no faults.
func Check(faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	return &Error{Faults: faults}
}

// Write writes a table to w, and into a file unless its name is "".
func Write(table fmt.Stringer, w io.Writer, file string) error {
	text := table.String()
	if _, err := io.WriteString(w, text); err != nil || file == "" {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}

// Processor returns the name of the machine's processor, if the system tells.
func Processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // else it is unknown
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor unknown"
}
