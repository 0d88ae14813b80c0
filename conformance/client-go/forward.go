package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

type forwardResult struct {
	Completed    int      `json:"completed"`
	Errors       []string `json:"errors"`
	Reported     string   `json:"reported"`
	Milliseconds int64    `json:"milliseconds"`
}

func runForward(arguments []string) (*forwardResult, error) {
	flags := flag.NewFlagSet("forward", flag.ContinueOnError)
	protocol := flags.String("protocol", "spdy", "spdy or websocket (SPDY through a WebSocket)")
	port := flags.Int("port", 0, "the pod's port")
	connections := flags.Int("connections", 1, "at once")
	length := flags.Int64("bytes", 1<<10, "each connection sends, and expects back")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	dialer, err := newDialer(*protocol, flags.Arg(0))
	if err != nil {
		return nil, err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	reported := newSink()
	// What comes on an error stream goes there, not to the forwarder's own output.
	handler := func(_ context.Context, err error, message string, _ ...any) {
		fmt.Fprintln(reported, message, err)
	}
	runtime.ErrorHandlers = []runtime.ErrorHandler{handler}
	ports := []string{fmt.Sprintf("0:%d", *port)}
	addresses := []string{"127.0.0.1"}
	forwarder, err := portforward.NewOnAddresses(dialer, addresses, ports, stop, ready, io.Discard, reported)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case err := <-ended:
		return nil, fmt.Errorf("no forwarding: %w", err)
	case <-ready:
	}
	forwarded, err := forwarder.GetPorts()
	if err != nil {
		return nil, err
	}
	local := fmt.Sprintf("127.0.0.1:%d", forwarded[0].Local)
	result := exchangeAll(local, *connections, *length)
	close(stop)
	<-ended
	reported.lock.Lock()
	defer reported.lock.Unlock()
	result.Reported = string(reported.text)
	return result, nil
}

func newDialer(protocol, address string) (httpstream.Dialer, error) {
	config, parsed, err := target(address)
	if err != nil {
		return nil, err
	}
	switch protocol {
	case "spdy":
		transport, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", parsed), nil
	case "websocket":
		return portforward.NewSPDYOverWebsocketDialer(parsed, config)
	}
	return nil, fmt.Errorf("protocol %q is neither spdy nor websocket", protocol)
}

// All connections are open before the first of them sends.
func exchangeAll(local string, connections int, length int64) *forwardResult {
	begin := time.Now()
	result := &forwardResult{Errors: []string{}}
	var lock sync.Mutex
	var open, done sync.WaitGroup
	open.Add(connections)
	done.Add(connections)
	for range connections {
		go func() {
			defer done.Done()
			connection, err := net.Dial("tcp", local)
			open.Done()
			open.Wait()
			if err == nil {
				err = exchange(connection.(*net.TCPConn), length)
			}
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				result.Errors = append(result.Errors, err.Error())
			} else {
				result.Completed++
			}
		}()
	}
	done.Wait()
	result.Milliseconds = time.Since(begin).Milliseconds()
	return result
}

// Sends noise, says that it is all, and wants the same back and then the end.
func exchange(connection *net.TCPConn, length int64) error {
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	input := newNoise(length)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(connection, input)
		if err == nil {
			err = connection.CloseWrite()
		}
		sent <- err
	}()
	received := sha256.New()
	count, err := io.Copy(received, connection)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", count, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if digest(received) != digest(input.sum) {
		return fmt.Errorf("got %d other bytes than the %d sent", count, length)
	}
	return nil
}
