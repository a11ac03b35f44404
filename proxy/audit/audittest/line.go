package audittest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// CheckLine returns what is wrong with a rendered record: it must be one line
// of valid JSON in UTF-8, in which no object has a key twice.
func CheckLine(line []byte) error {
	if bytes.ContainsAny(line, "\r\n") || !utf8.Valid(line) || !json.Valid(line) {
		return fmt.Errorf("no good line: %q", line)
	}
	return onceEach(json.NewDecoder(bytes.NewReader(line)))
}

// onceEach reads a JSON value and refuses keys that stand twice in an object.
func onceEach(d *json.Decoder) error {
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
		if err := onceEach(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
