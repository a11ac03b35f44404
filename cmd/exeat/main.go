// Command exeat is an authenticated egress gateway: it identifies each caller by its
// SPIFFE identity, allows only the destinations on that identity's allowlist, tells the
// caller why it refused, and records every decision.
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
	exitNo    = 1 // the answer is no: a request is denied, a check failed, a policy has an error
	exitUsage = 2 // wrong use or a broken configuration
)

// errAnswerNo means that the command worked and that its answer is no. The text has
// been printed already.
var errAnswerNo = errors.New("the answer is no")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program without the exit of the process.
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
		Long: `exeat is an egress gateway: workloads reach the outside through it. It knows each
caller by its SPIFFE identity, allows only the destinations that the policy lists
for that identity, tells a refused caller why, and records every decision.

Exit codes: 0 good, 1 the answer is no, 2 wrong use or a broken configuration. The
answer is no if a policy denies a request or has errors, or a check of the demo
fails.`,
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
	// A command that only has subcommands can be run for its help and its errors, but
	// help should not show that as a way to use it.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.AddCommand(newDemo(), newServe(), newAgent(), newPolicy(), newAuthority(), newVersion())
	return root
}

// newHelp prints the same as --help; the name of an unknown command is an error.
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

// group runs a command that only has subcommands: it prints the help.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := "see " + cmd.CommandPath() + " --help"
	near := cmd.SuggestionsFor(args[0])
	for _, sub := range cmd.Commands() { // lint is a command of policy
		if c, _, err := sub.Find(args[:1]); err == nil && c != sub && len(near) == 0 {
			near = []string{c.CommandPath()}
		}
	}
	if len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q: %s", args[0], cmd.CommandPath(), hint)
}

// noArgs refuses arguments. Most of the time they belong to a forgotten flag.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes flags and no arguments, not %q: see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
}
