package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/exeat-dev/exeat/allowlist"
)

// The values of --output, the same flag on every command that prints data.
const (
	outputText = "text"
	outputJSON = "json"
)

// visible escapes the output of a command, which quotes arguments, files and policies.
// It keeps line feeds and escapes every other character that a terminal obeys, which
// does not change the meaning of JSON. Each character must be within one Write.
type visible struct{ w io.Writer }

// Write implements io.Writer.
func (v visible) Write(p []byte) (int, error) {
	var out []byte
	for line := range bytes.Lines(p) {
		text, ended := bytes.CutSuffix(line, []byte{'\n'})
		if out = allowlist.AppendVisible(out, text); ended {
			out = append(out, '\n')
		}
	}
	if _, err := v.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", outputText, "`form` of the output: text or json")
}

func checkOutput(output string) error {
	if output != outputText && output != outputJSON {
		return fmt.Errorf("--output %s: write text or json", output)
	}
	return nil
}

// require makes flags of a command mandatory.
func require(cmd *cobra.Command, names ...string) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		var missing []string
		for _, name := range names {
			if !cmd.Flags().Changed(name) {
				missing = append(missing, "--"+name)
			}
		}
		if missing == nil {
			return nil
		}
		return fmt.Errorf("%s needs %s: see %[1]s --help", cmd.CommandPath(), strings.Join(missing, " and "))
	}
}

// flagError adds to an error where the flags of the command are explained. A command that
// only has subcommands reports an unknown subcommand first: the flag belongs to that one.
func flagError(cmd *cobra.Command, err error) error {
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return group(cmd, args)
	}
	return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
}

// ignoreBrokenPipes makes a write to a pipe without a reader return an error, as on any
// other descriptor, for commands that run until they are told to stop. By default the
// first such write to standard output or error ends the process (SIGPIPE), which is
// right for a command that prints and ends.
func ignoreBrokenPipes() { signal.Ignore(syscall.SIGPIPE) }

// bestEffort is an output for a reader who may have left. Without a reader, writes
// succeed and have no effect.
type bestEffort struct{ io.Writer }

// Write implements io.Writer.
func (b bestEffort) Write(p []byte) (int, error) {
	n, err := b.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		return len(p), nil
	}
	return n, err
}
