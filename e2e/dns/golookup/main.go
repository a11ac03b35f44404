// Command golookup prints the addresses of a name that Go's resolver finds.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	r := net.Resolver{PreferGo: true}
	addrs, err := r.LookupNetIP(context.Background(), "ip", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for _, a := range addrs {
		fmt.Println(a.Unmap())
	}
}
