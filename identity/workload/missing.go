package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// missing holds the reason why there is no first snapshot yet. It is safe for
// concurrent use.
type missing struct {
	tell func(error) // called for a new reason; may be nil

	mu  sync.Mutex
	why error // last reason; nil if none is known
}

// set stores a reason, and passes it to tell if it is a new one.
func (m *missing) set(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.why != nil && m.why.Error() == why.Error()
	m.why = why
	if !known && m.tell != nil {
		m.tell(why)
	}
}

// cause returns the last reason, or nil if none is known.
func (m *missing) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

// errSilent says that the agent accepts a connection but sends nothing.
var errSilent = errors.New("it does not answer; check the path of the socket, and that what listens there is an agent that runs")

// silent sets errSilent as the reason, unless another one is known.
func (w *watcher) silent() {
	if w.missing.cause() == nil {
		w.missing.set(errSilent)
	}
}

// startError returns why there is no first snapshot. It is called after the last call
// of another method.
func (w *watcher) startError(after time.Duration) error {
	why := w.missing.cause()
	if why == nil {
		why = errSilent
	}
	return fmt.Errorf("no X509-SVID from the Workload API at %s within %s: %w", w.address, after, why)
}

// cause explains an error of the watch and adds what to check.
func (w *watcher) cause(err error) error {
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("%w; the agent runs; check that this workload is registered with it, under the user it runs as", plain(err))
	}
	if failed := connect(w.address); failed != nil { // gRPC keeps only the text of the error
		return failed
	}
	return fmt.Errorf("%w; check the path of the socket, and that what listens there is an agent that runs", plain(err))
}

// connectTimeout bounds one attempt to connect.
const connectTimeout = time.Second

// connect tries to connect to an address that gRPC could not reach. It returns why that
// is not possible and what to check, or nil if the connection succeeds.
func connect(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	at := u.Host
	if u.Scheme == "unix" {
		at = u.Path
		if at == "" {
			at = u.Opaque
		}
	}
	conn, err := (&net.Dialer{Timeout: connectTimeout}).Dial(u.Scheme, at)
	if err == nil {
		_ = conn.Close()
		return nil
	}
	return fmt.Errorf("%w; %s", err, toCheck(err, u.Scheme, at))
}

// maxPath is the largest number of bytes in the path of a unix socket (unix(7)).
const maxPath = 107

// toCheck returns what to check after a connection failed.
func toCheck(err error, network, at string) string {
	dir := filepath.Dir(at)
	_, missing := os.Stat(dir)
	switch {
	case network != "unix":
		return "check that the agent runs and listens there, and that this workload is registered with it"
	case errors.Is(err, fs.ErrNotExist) && errors.Is(missing, fs.ErrNotExist):
		return "there is no directory " + dir + ": check the path of the socket, that the directory is mounted here, that the agent runs, and that this workload is registered with it"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such socket: check the path of the socket, that the agent runs, and that this workload is registered with it"
	case len(at) > maxPath:
		return fmt.Sprintf("the path has %d bytes, and that of a socket at most %d: choose a shorter one", len(at), maxPath)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens on the socket any more: check that the agent runs"
	case errors.Is(err, fs.ErrPermission):
		return "check the permissions of the socket and of its directory, and the user that this process runs as"
	}
	return "check the path of the socket, and that the agent runs"
}
