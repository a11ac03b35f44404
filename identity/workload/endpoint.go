package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// endpoint returns the address of a socket in the form of the SPIFFE Workload Endpoint
// standard (section 4).
func endpoint(socket string) (string, error) {
	if socket == "" {
		return "", errors.New("no socket of the Workload API is configured; give the path of the agent's socket")
	}
	address := socket
	if filepath.IsAbs(socket) {
		address = (&url.URL{Scheme: "unix", Path: socket}).String()
	}
	fail := func(why string) (string, error) {
		return "", fmt.Errorf("socket of the Workload API %.300q: %s; give an absolute path, unix:///path or tcp://127.0.0.1:port", socket, why)
	}
	if err := workloadapi.ValidateAddress(address); err != nil {
		return fail(err.Error())
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return fail(err.Error())
	case u.Scheme == "unix" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")):
		return fail("the path is not absolute")
	case u.Scheme == "tcp":
		at, err := netip.ParseAddrPort(u.Host)
		if err != nil || !at.Addr().Unmap().IsLoopback() || at.Port() == 0 {
			return fail("TCP is for a port on a loopback address only, since private keys come over it in the clear")
		}
	}
	return address, nil
}
