package process

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// inputs holds everything that a gateway reads and follows.
type inputs struct {
	log     *slog.Logger
	reloads identityReloads
	// identityTimeout bounds the wait for an identity of the Workload API; zero means
	// that only ctx bounds it.
	identityTimeout time.Duration
	// waitFor is called with what the start waits for from now on.
	waitFor func(what string)

	identity gateway.IdentityProvider // nil without an identity
	agent    *identityAgent           // identity, if it comes from the Workload API; otherwise nil
	webs     []*webCertificate
	files    []*watching // all files that are watched
}

// webCertificate is a certificate that a listener presents instead of the SVID.
type webCertificate struct {
	*identity.WebCertificate

	watching *watching
	reread   chan struct{} // receives when the files must be read again at once
}

// openListeners reads web certificates and adds the listeners to the configuration of a
// gateway. It waits for nothing, so it is called before open. Call close even after an
// error.
func (s *inputs) openListeners(cfg *config.Config, to *gateway.Config) (err error) {
	for _, l := range cfg.Listeners {
		if l.WebCertificate != "" {
			s.waitFor("the web certificate " + l.WebCertificate + " is read")
			if l.Web, err = s.openWeb(l.WebCertificate, l.WebKey); err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
		}
		to.Listeners = append(to.Listeners, l.Listener)
	}
	return nil
}

// open reads identity and policy for the first time and adds them to the configuration
// of a gateway. Call close even after an error.
func (s *inputs) open(ctx context.Context, cfg *config.Config, to *gateway.Config) error {
	if err := s.openIdentity(ctx, cfg, to); err != nil {
		return err
	}
	s.identity = to.Identity
	var own spiffeid.TrustDomain
	if to.Identity != nil {
		own = to.Identity.Snapshot().TrustDomain()
	}
	s.waitFor("the policy is read: " + strings.Join(cfg.Policy, ", "))
	policy, err := openPolicyFiles(ctx, cfg.Policy, cfg.PolicyPoll, own, s.log)
	if err != nil {
		return err
	}
	to.Policy, s.files = policy, append(s.files, policy.watching)
	return nil
}

// openIdentity opens the provider of the identity, if the configuration names one.
func (s *inputs) openIdentity(ctx context.Context, cfg *config.Config, to *gateway.Config) error {
	switch {
	case cfg.WorkloadAPI != "":
		agent, err := s.openAgent(ctx, cfg.WorkloadAPI)
		if err != nil {
			return err
		}
		s.agent, to.Identity = agent, agent
	case cfg.Identity != nil:
		s.waitFor("the identity is read: " + strings.Join(identityPaths(*cfg.Identity), ", "))
		files, err := openIdentityFiles(*cfg.Identity, &s.reloads, s.log)
		if err != nil {
			return err
		}
		to.Identity, s.files = files, append(s.files, files.watching)
	}
	return nil
}

// openWeb reads a web certificate, and adds it to webs, which followWebs follows.
func (s *inputs) openWeb(certificate, key string) (*identity.WebCertificate, error) {
	loaded, err := identity.LoadWebCertificate(certificate, key)
	if err != nil {
		return nil, err
	}
	web := &webCertificate{WebCertificate: loaded, reread: make(chan struct{}, 1)}
	s.reloads.loaded.Add(1)
	files := &followed{files: loaded, count: &s.reloads, what: "web certificate", log: s.log}
	web.watching = newWatching(s.log, watch.Config{Paths: []string{certificate, key}, Changed: files.reload})
	s.webs, s.files = append(s.webs, web), append(s.files, web.watching)
	return loaded, nil
}

// watch begins to watch every file. Call it before the files are followed.
func (s *inputs) watch() error {
	for _, w := range s.files {
		if err := w.open(); err != nil {
			return err
		}
	}
	return nil
}

// followWebs reads web certificates again when they change, until ctx is done.
func (s *inputs) followWebs(ctx context.Context) {
	var following sync.WaitGroup
	for _, web := range s.webs {
		following.Go(func() { web.watching.run(ctx, web.reread) })
	}
	following.Wait()
}

// rereadWebs makes followWebs read every web certificate again.
func (s *inputs) rereadWebs() {
	for _, web := range s.webs {
		select {
		case web.reread <- struct{}{}:
		default: // a reading is already requested
		}
	}
}

// identityRefused returns how many of these were refused when they were last read or
// received: the identity with its bundles, and each web certificate.
func (s *inputs) identityRefused() int {
	n := int(s.reloads.unused.Load())
	if s.agent != nil && s.agent.Refused() {
		n++
	}
	return n
}

// close ends what open began.
func (s *inputs) close() {
	if s.agent != nil {
		s.agent.Close()
	}
	for _, w := range s.files {
		w.close()
	}
}
