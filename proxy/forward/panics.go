package forward

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
)

// panics holds the first panic of our code in a goroutine of the transport. The transport
// does not recover, so that the panic would end the process. Forward panics with its text
// in the goroutine of its caller, which can recover.
type panics struct {
	first atomic.Pointer[string] // the text and the stack; nil if there was none
}

var errPanicked = errors.New("a panic in the gateway")

// contain turns a panic into an error. Functions that the transport calls defer it.
func (p *panics) contain(err *error) {
	if cause := recover(); cause != nil {
		text := fmt.Sprintf("%v\n\n%s", cause, debug.Stack())
		p.first.CompareAndSwap(nil, &text)
		*err = errPanicked
	}
}
