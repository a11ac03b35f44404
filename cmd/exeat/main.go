// Command exeat is an authenticated egress gateway: it knows each caller by
// its SPIFFE identity, lets out only what that identity's allowlist names, says
// why it refused, and records every decision.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitNo    = 1 // the answer is no: denied, a check failed, a lint error
	exitUsage = 2 // wrong use or a broken configuration
)

// answerNo is an error whose text has been printed: the command worked, and
// its answer is no.
var errAnswerNo = errors.New("the answer is no")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errAnswerNo):
		return exitNo
	}
	_, _ = fmt.Fprintln(visible{stderr}, "exeat: "+strings.TrimSuffix(err.Error(), "\n"))
	return exitUsage
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "exeat",
		Short: "An authenticated egress gateway",
		Long: `exeat stands between workloads and the outside. It knows each caller by its
SPIFFE identity, lets out only what that identity's allowlist names, says why it
refused, and records every decision.

Exit codes: 0 good, 1 the answer is no, 2 wrong use or a broken configuration.`,
		Example:       "  exeat demo\n  exeat serve --config exeat.yaml",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.Version = versionLine()
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelp())
	// What only holds others can be run, for its help and its errors, but is no
	// way to use it.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.AddCommand(newDemo(), newServe(), newPolicy(), newAuthority(), newVersion())
	return root
}

// newHelp is the same as --help; a command that does not exist is an error.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Help about a command",
		Example: "  exeat help policy check",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			return group(about, rest)
		},
	}
}

// group is what a command does that only holds others: it prints its help.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := "see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q: %s", args[0], cmd.CommandPath(), hint)
}

// noArgs refuses arguments, which are most of the time a forgotten flag.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes flags and no arguments, not %q: see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
}
