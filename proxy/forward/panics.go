package forward

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
)

// panics holds the first panic of our code in a goroutine of the transport. Nobody
// recovers there, so that it would end the process; Forward panics with its text
// in the goroutine of the caller, who may.
type panics struct {
	first atomic.Pointer[string] // the text and the stack; nil if there was none
}

var errPanicked = errors.New("a panic in the gateway")

// contain makes an error of a panic. What the transport calls defers it.
func (p *panics) contain(err *error) {
	if cause := recover(); cause != nil {
		text := fmt.Sprintf("%v\n\n%s", cause, debug.Stack())
		p.first.CompareAndSwap(nil, &text)
		*err = errPanicked
	}
}
