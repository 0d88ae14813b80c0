package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

type execResult struct {
	Sent         string `json:"sent"`
	Received     string `json:"received"`
	Bytes        int64  `json:"bytes"`
	Stdout       string `json:"stdout"`
	Stderr       string `json:"stderr"`
	ExitCode     int    `json:"exit_code"`
	Error        string `json:"error"`
	Milliseconds int64  `json:"milliseconds"`
}

// As many sizes as fit through at once, each another; the last is 222 by 111.
type storm struct{ left int }

func (s *storm) Next() *remotecommand.TerminalSize {
	switch {
	case s.left <= 0:
		return nil
	case s.left == 1:
		s.left = 0
		return &remotecommand.TerminalSize{Width: 222, Height: 111}
	}
	s.left--
	step := uint16(s.left % 100)
	return &remotecommand.TerminalSize{Width: 80 + step, Height: 24 + step}
}

func runExec(arguments []string) (*execResult, error) {
	flags := flag.NewFlagSet("exec", flag.ContinueOnError)
	protocol := flags.String("protocol", "spdy", "spdy or websocket")
	method := flags.String("method", "POST", "of SPDY's upgrade request; WebSocket's is GET")
	length := flags.Int64("bytes", 0, "bytes of noise for stdin")
	text := flags.String("stdin", "", "text for stdin, instead of noise")
	noStdin := flags.Bool("no-stdin", false, "ask for no stdin")
	noStderr := flags.Bool("no-stderr", false, "ask for no stderr")
	tty := flags.Bool("tty", false, "the process has a terminal")
	resizes := flags.Int("resizes", 0, "terminal sizes to send")
	hold := flags.Duration("hold-stdin", 0, "how long stdin stays open after its last byte")
	abort := flags.Int64("abort-after", 0, "give up once that many bytes of stdout have come")
	limit := flags.Duration("limit", 10*time.Minute, "give up after this time")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	executor, err := newExecutor(*protocol, *method, flags.Arg(0))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	input := newNoise(*length)
	stdout, stderr := newSink(), newSink()
	if *abort > 0 {
		stdout.enough, stdout.limit = cancel, *abort
	}
	options := remotecommand.StreamOptions{Stdout: stdout, Tty: *tty}
	if !*noStdin {
		options.Stdin = io.MultiReader(input, strings.NewReader(*text), pause(*hold))
	}
	if !*tty && !*noStderr {
		options.Stderr = stderr
	}
	if *resizes > 0 {
		options.TerminalSizeQueue = &storm{left: *resizes}
	}
	begin := time.Now()
	err = executor.StreamWithContext(ctx, options)
	result := &execResult{Milliseconds: time.Since(begin).Milliseconds()}
	stdout.lock.Lock()
	defer stdout.lock.Unlock()
	stderr.lock.Lock()
	defer stderr.lock.Unlock()
	result.Sent, result.Received = digest(input.sum), digest(stdout.sum)
	result.Bytes, result.Stdout = stdout.bytes, string(stdout.text)
	result.Stderr = string(stderr.text)
	var ended exec.CodeExitError
	switch {
	case errors.As(err, &ended):
		result.ExitCode = ended.Code
	case err != nil:
		result.Error = err.Error()
	}
	return result, nil
}

func newExecutor(protocol, method, address string) (remotecommand.Executor, error) {
	config, parsed, err := target(address)
	if err != nil {
		return nil, err
	}
	switch protocol {
	case "spdy":
		return remotecommand.NewSPDYExecutor(config, method, parsed)
	case "websocket":
		return remotecommand.NewWebSocketExecutor(config, "GET", address)
	}
	return nil, fmt.Errorf("protocol %q is neither spdy nor websocket", protocol)
}

// A reader that ends after a time.
type pause time.Duration

func (p pause) Read([]byte) (int, error) {
	time.Sleep(time.Duration(p))
	return 0, io.EOF
}
