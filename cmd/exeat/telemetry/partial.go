package telemetry

import "reflect"

// rejectedError is the error of an export when the collector has rejected only some of the
// items.
type rejectedError struct {
	error

	items int // number of rejected items; more than zero
}

// Unwrap returns the exporter's error.
func (e *rejectedError) Unwrap() error { return e.error }

// countLost returns how many items of an export are lost.
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

// partialSuccess reports whether an error means that the collector has answered, and
// accepted all items but those that it rejected. Each exporter has an internal type for
// that, which is recognised by its name, because other packages cannot refer to it. The
// message is no proof, because any other error could have it as well.
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
			if len(all) != 1 { // another error happened as well
				return 0, false
			}
			err = all[0]
		default:
			return 0, false
		}
	}
	return 0, false
}
