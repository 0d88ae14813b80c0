// Command client-go drives the streaming protocols of a CRI runtime with the client library that
// kubectl is made of, and prints what happened as one JSON object.
//
// Usage: client-go exec|forward [FLAGS] URL, the URL as Exec, Attach or PortForward gave it.
package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: client-go exec|forward [FLAGS] URL"))
	}
	var result any
	var err error
	switch os.Args[1] {
	case "exec":
		result, err = runExec(os.Args[2:])
	case "forward":
		result, err = runForward(os.Args[2:])
	default:
		err = fmt.Errorf("%q is neither exec nor forward", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "client-go:", err)
	os.Exit(1)
}

// The configuration the library wants for a server without certificates, and the parsed address.
func target(address string) (*rest.Config, *url.URL, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	host := &rest.Config{Host: parsed.Scheme + "://" + parsed.Host}
	return host, parsed, nil
}
