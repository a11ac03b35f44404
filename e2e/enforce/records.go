package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// recordTime bounds the wait for records, and how often the file is looked at.
const (
	recordTime = 20 * time.Second
	recordLook = 10 * time.Millisecond
)

// record is what this program reads of a line of the gateway's records.
type record struct {
	Time        time.Time `json:"time"`
	Event       string    `json:"event"`
	Client      string    `json:"client"`
	Identity    string    `json:"identity"`
	Host        string    `json:"host"`
	Reason      string    `json:"reason"`
	Rule        string    `json:"rule"`
	DurationMS  float64   `json:"duration_ms"`
	CloseReason string    `json:"close_reason"`
	Detail      string    `json:"detail"`
}

// began is when what the record tells of began.
func (r record) began() time.Time {
	return r.Time.Add(-time.Duration(r.DurationMS * float64(time.Millisecond)))
}

// recordFile reads the records that come.
type recordFile struct {
	path   string
	offset int64
}

// read returns the records that came since the last time.
func (f *recordFile) read() ([]record, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	f.offset += int64(len(data))
	var all []record
	for line := range bytes.Lines(data) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("record %q: %w", line, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// until returns the records that came since the last time and come until they
// are enough.
func (f *recordFile) until(ctx context.Context, what string, enough func(all []record) bool) ([]record, error) {
	var all []record
	look := time.NewTicker(recordLook)
	defer look.Stop()
	late := time.After(recordTime)
	for {
		more, err := f.read()
		if err != nil {
			return nil, err
		}
		if all = append(all, more...); enough(all) {
			return all, nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-late:
			return all, errors.New("no record of " + what)
		}
	}
}

// reloaded returns the first state that came into force, or was enforced again,
// at a moment or after it.
func reloaded(all []record, since time.Time) (record, bool) {
	for _, r := range all {
		if r.Event == "policy.reload" && !r.Time.Before(since) {
			return r, true
		}
	}
	return record{}, false
}
