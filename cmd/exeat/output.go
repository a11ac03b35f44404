package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// The values of --output, the same flag on every command that prints data.
const (
	outputText = "text"
	outputJSON = "json"
)

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", outputText, "form of the output: text or json")
}

func checkOutput(output string) error {
	if output != outputText && output != outputJSON {
		return fmt.Errorf("--output %s: write text or json", output)
	}
	return nil
}
