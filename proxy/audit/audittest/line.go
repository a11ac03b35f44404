package audittest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/exeat-dev/exeat/allowlist"
)

// CheckLine checks a rendered record and returns what is wrong with it: it must be one
// line of valid JSON in UTF-8 without characters that a terminal obeys, and no object
// may have a key twice.
func CheckLine(line []byte) error {
	if bytes.ContainsAny(line, "\r\n") || !utf8.Valid(line) || !json.Valid(line) {
		return fmt.Errorf("no good line: %q", line)
	}
	if text := allowlist.AppendVisible(nil, line); !bytes.Equal(text, line) {
		return fmt.Errorf("a terminal obeys what is in the line: %q", line)
	}
	return checkKeys(json.NewDecoder(bytes.NewReader(line)))
}

// checkKeys reads a JSON value and refuses an object that has a key twice.
func checkKeys(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	open, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			key, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if seen[name] {
				return fmt.Errorf("%s stands twice", name)
			}
			seen[name] = true
		}
		if err := checkKeys(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
