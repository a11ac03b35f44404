package main

import (
	"encoding/json"
	"io"
	"time"
)

// The parent talks to its children in lines of JSON: a command to standard
// input, its reply from standard output. A child ends when its input does.

// The roles of a child.
const (
	originRole = "origin"
	holderRole = "holder"
)

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

// answerAll answers commands until there are no more, and returns the exit code.
func answerAll(in io.Reader, out io.Writer, answer func(command) reply) int {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var c command
		if decoder.Decode(&c) != nil {
			return 0
		}
		if encoder.Encode(answer(c)) != nil {
			return exitUsage
		}
	}
}
