package enforce

import (
	"encoding/json"
	"errors"
	"io"
	"time"
)

// The parent talks to its children in lines of JSON: a command to standard
// input, its reply from standard output. A child ends when its input does.

// The roles of a child.
const (
	originRole = "enforce-origin"
	holderRole = "enforce-holder"
)

// Role returns what a child does that was started with name as its only
// argument; nil if there is no such role. It returns when its input ends.
func Role(name string) func(in io.Reader, out io.Writer) error {
	switch name {
	case originRole:
		return serveOrigin
	case holderRole:
		return serveHolder
	}
	return nil
}

// command is for a holder: one of its fields is set.
type command struct {
	Setup *setup        `json:"setup,omitempty"`
	Open  []task        `json:"open,omitempty"`
	Await *await        `json:"await,omitempty"`
	Probe time.Duration `json:"probe,omitempty"` // between two echoes of a tunnel
	Stop  bool          `json:"stop,omitempty"`  // probing
}

// setup is what a holder needs before anything else.
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
	Caller int    `json:"caller"` // index in setup
	Target string `json:"target"` // HOST:PORT
}

// await asks which tunnels have ended since the last time, once there are Count
// of them or Patience has passed, and no more have come for a moment.
type await struct {
	Count    int           `json:"count"`
	Patience time.Duration `json:"patience"`
}

// reply answers a command, or is the first word of an origin.
type reply struct {
	Error   string   `json:"error,omitempty"`
	Address string   `json:"address,omitempty"` // where an origin listens
	Opened  []opened `json:"opened,omitempty"`
	Ended   []ended  `json:"ended,omitempty"`
	Echoes  []echo   `json:"echoes,omitempty"`
}

// opened is a tunnel and the caller's address, which records name.
type opened struct {
	N     int    `json:"n"`
	Local string `json:"local"`
}

// ended is when the caller saw the end of a tunnel.
type ended struct {
	N  int       `json:"n"`
	At time.Time `json:"at"`
}

// echo is when it was due to be sent, and how long after that it came back.
type echo struct {
	Due  time.Time     `json:"due"`
	Took time.Duration `json:"took"`
}

// answerAll answers commands until there are no more.
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
