package enforce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/exeat-dev/exeat/e2e/site"
)

// role is a child process that runs this program in a role; see [Role].
type role struct {
	encoder *json.Encoder
	decoder *json.Decoder
}

// start starts a child in a role. It ends with the world.
func (w *world) start(ctx context.Context, name string) (*role, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, name)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if _, err := w.Start(cmd, site.Ready{}); err != nil {
		return nil, err
	}
	return &role{encoder: json.NewEncoder(stdin), decoder: json.NewDecoder(stdout)}, nil
}

// hear reads a reply of the child.
func (r *role) hear() (reply, error) {
	var answer reply
	if err := r.decoder.Decode(&answer); err != nil {
		return reply{}, fmt.Errorf("a child ended: %w", err)
	}
	if answer.Error != "" {
		return reply{}, errors.New(answer.Error)
	}
	return answer, nil
}

func (r *role) do(c command) (reply, error) {
	if err := r.encoder.Encode(c); err != nil {
		return reply{}, fmt.Errorf("a child ended: %w", err)
	}
	return r.hear()
}
