package telemetry

import "reflect"

// rejectedError is what an export returns of which the collector has rejected some
// items only.
type rejectedError struct {
	error

	items int // how many; more than zero
}

// Unwrap returns the exporter's error.
func (e *rejectedError) Unwrap() error { return e.error }

// countLost returns how many of the items of an export are lost by its error.
func countLost(err error, items int) int {
	//nolint:errorlint // delivery.run returns it as it is
	switch e := err.(type) {
	case nil:
		return 0
	case *rejectedError:
		return min(e.items, items)
	}
	return items
}

// partialSuccess reports whether an error says that the collector has answered, and
// taken all but the items that it has rejected. Each exporter has a type of its own for
// that, to which nobody else can refer, so it is told by its name; the message could be
// in any other error as well.
func partialSuccess(err error) (rejected int64, ok bool) {
	for err != nil {
		if v := reflect.ValueOf(err); v.Kind() == reflect.Struct && v.Type().Name() == "PartialSuccess" {
			if items := v.FieldByName("RejectedItems"); items.IsValid() && items.CanInt() {
				return items.Int(), true
			}
		}
		//nolint:errorlint // the chain is followed here
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			all := e.Unwrap()
			if len(all) != 1 { // something else has failed, too
				return 0, false
			}
			err = all[0]
		default:
			return 0, false
		}
	}
	return 0, false
}
