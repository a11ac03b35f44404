package enforce

import (
	"encoding/json"
	"errors"
	"io"
	"time"
)

// The parent and its children exchange lines of JSON: the parent writes a command to the
// child's standard input, and reads the reply from its standard output. A child ends when
// its input ends.

// The roles of a child.
const (
	originRole = "enforce-origin"
	holderRole = "enforce-holder"
)

// Role returns the function that a child runs which was started with name as its only
// argument, or nil if there is no such role. The function returns when its input ends.
func Role(name string) func(in io.Reader, out io.Writer) error {
	switch name {
	case originRole:
		return serveOrigin
	case holderRole:
		return serveHolder
	}
	return nil
}

// command is a command for a holder. One of its fields is set.
type command struct {
	Setup *setup        `json:"setup,omitempty"`
	Open  []task        `json:"open,omitempty"`
	Await *await        `json:"await,omitempty"`
	Probe time.Duration `json:"probe,omitempty"` // probe every tunnel at this interval
	Stop  bool          `json:"stop,omitempty"`  // stop probing
}

// setup is the first command of a holder.
type setup struct {
	Gateway string `json:"gateway"` // HOST:PORT
	Roots   []byte `json:"roots"`   // PEM
	Callers []pair `json:"callers"`
}

// pair is an SVID as PEM.
type pair struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
}

// task is a tunnel to open.
type task struct {
	N      int    `json:"n"`
	Caller int    `json:"caller"` // index in setup.Callers
	Target string `json:"target"` // HOST:PORT
}

// await asks for the tunnels that have ended since the last await. The reply comes when
// Count have ended or Patience has passed, and quietTime after that.
type await struct {
	Count    int           `json:"count"`
	Patience time.Duration `json:"patience"`
}

// reply is the reply to a command, or the first line of an origin.
type reply struct {
	Error   string   `json:"error,omitempty"`
	Address string   `json:"address,omitempty"` // address of an origin
	Opened  []opened `json:"opened,omitempty"`
	Ended   []ended  `json:"ended,omitempty"`
	Echoes  []echo   `json:"echoes,omitempty"`
}

// opened is a tunnel that was opened, and the caller's address, which is in its records.
type opened struct {
	N     int    `json:"n"`
	Local string `json:"local"`
}

// ended is a tunnel that ended, and the time at which the caller noticed.
type ended struct {
	N  int       `json:"n"`
	At time.Time `json:"at"`
}

// echo is the time at which a byte was due, and the time until it came back.
type echo struct {
	Due  time.Time     `json:"due"`
	Took time.Duration `json:"took"`
}

// answerAll answers commands until the input ends.
func answerAll(in io.Reader, out io.Writer, answer func(command) reply) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var c command
		if err := decoder.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := encoder.Encode(answer(c)); err != nil {
			return err
		}
	}
}
