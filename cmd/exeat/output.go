package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// The values of --output, the same flag on every command that prints data.
const (
	outputText = "text"
	outputJSON = "json"
)

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", outputText, "`form` of the output: text or json")
}

func checkOutput(output string) error {
	if output != outputText && output != outputJSON {
		return fmt.Errorf("--output %s: write text or json", output)
	}
	return nil
}

// require makes a command ask for flags that it cannot do without.
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

// flagError says where the flags of a command are explained.
func flagError(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
}
