// Drives a SPDY/3.1 server with the Go package that the clients of Kubernetes are built on.
//
// Usage: spdy ADDRESS SCENARIO [NUMBER…]; a line on standard output when all went right, else exit
// status 1 and the reason. What the server does with a stream is told by its header streamType.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/moby/spdystream"
)

const patience = 60 * time.Second

var scenarios = map[string]func(*client, []int) error{
	"echo":    echo,
	"source":  source,
	"sink":    sink,
	"ping":    ping,
	"refused": refused,
	"stuck":   stuck,
	"bye":     bye,
	"close":   closeWait,
	"vanish":  vanish,
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[2]+":", err)
		os.Exit(1)
	}
}

func run(address, scenario string, arguments []string) error {
	var numbers []int
	for _, argument := range arguments {
		number, err := strconv.Atoi(argument)
		if err != nil {
			return err
		}
		numbers = append(numbers, number)
	}
	socket, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	connection, err := spdystream.NewConnection(socket, false)
	if err != nil {
		return err
	}
	go connection.Serve(spdystream.NoOpStreamHandler)
	return scenarios[scenario](&client{connection, socket}, numbers)
}

type client struct {
	connection *spdystream.Connection
	socket     net.Conn
}

// open opens a stream and waits for the reply.
func (c *client) open(kind string, bytes int) (*spdystream.Stream, error) {
	headers := http.Header{}
	headers.Set("streamType", kind)
	headers.Set("bytes", strconv.Itoa(bytes))
	stream, err := c.connection.CreateStream(headers, nil, false)
	if err != nil {
		return nil, err
	}
	return stream, stream.WaitTimeout(patience)
}

// echo sends bytes on several streams at once and wants them back, each to its end.
func echo(c *client, numbers []int) error {
	streams, count := numbers[0], numbers[1]
	var failed error
	var lock sync.Mutex
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			if err := echoOne(c, count); err != nil {
				lock.Lock()
				failed = errors.Join(failed, err)
				lock.Unlock()
			}
		})
	}
	all.Wait()
	fmt.Println("echoed", streams, "times", count)
	return failed
}

func echoOne(c *client, count int) error {
	stream, err := c.open("echo", 0)
	if err != nil {
		return err
	}
	want := random(count)
	written := make(chan error, 1)
	go func() {
		_, err := stream.Write(want)
		written <- errors.Join(err, stream.Close())
	}()
	got, err := io.ReadAll(stream)
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("stream %d: %d of %d bytes came back, or others", stream.Identifier(), len(got), count)
	}
	return nil
}

func random(count int) []byte {
	source := rand.NewChaCha8([32]byte{byte(count)})
	data := make([]byte, count)
	source.Read(data)
	return data
}

// source receives bytes as fast as they come.
func source(c *client, numbers []int) error {
	begun := time.Now()
	stream, err := c.open("source", numbers[0])
	if err != nil {
		return err
	}
	got, err := io.Copy(io.Discard, stream)
	if err != nil || got != int64(numbers[0]) {
		return fmt.Errorf("%d of %d bytes: %v", got, numbers[0], err)
	}
	report("received", got, begun)
	return nil
}

// sink sends bytes as fast as they go, and wants their count.
func sink(c *client, numbers []int) error {
	begun := time.Now()
	stream, err := c.open("sink", 0)
	if err != nil {
		return err
	}
	data := make([]byte, 32<<10)
	for left := numbers[0]; left > 0; left -= len(data) {
		if _, err := stream.Write(data[:min(left, len(data))]); err != nil {
			return err
		}
	}
	stream.Close()
	answer, err := io.ReadAll(stream)
	if err != nil || string(answer) != strconv.Itoa(numbers[0]) {
		return fmt.Errorf("the server has counted %q: %v", answer, err)
	}
	report("sent", int64(numbers[0]), begun)
	return nil
}

func report(done string, count int64, begun time.Time) {
	rate := float64(count) / (1 << 20) / time.Since(begun).Seconds()
	fmt.Printf("%s %d bytes, %.0f MiB/s\n", done, count, rate)
}

// ping wants its pings answered.
func ping(c *client, _ []int) error {
	for range 3 {
		if _, err := c.connection.Ping(); err != nil {
			return err
		}
	}
	fmt.Println("answered")
	return nil
}

// refused opens one stream more than the server takes.
func refused(c *client, numbers []int) error {
	for range numbers[0] {
		if _, err := c.open("idle", 0); err != nil {
			return err
		}
	}
	if _, err := c.open("idle", 0); !errors.Is(err, spdystream.ErrReset) {
		return fmt.Errorf("one too many: %v", err)
	}
	return ping(c, nil)
}

// stuck fills a stream that the server doesn't read, and wants others to be served all the same.
func stuck(c *client, numbers []int) error {
	stream, err := c.open("idle", 0)
	if err != nil {
		return err
	}
	go io.Copy(stream, bytes.NewReader(make([]byte, numbers[0])))
	if _, err := io.ReadAll(stream); err != nil {
		return fmt.Errorf("not reset: %w", err)
	}
	return echoOne(c, 100_000)
}

// bye reads the server's last words, after which it closes the connection.
func bye(c *client, numbers []int) error {
	stream, err := c.open("bye", numbers[0])
	if err != nil {
		return err
	}
	got, err := io.Copy(io.Discard, stream)
	if err != nil || got != int64(numbers[0]) {
		return fmt.Errorf("%d of %d bytes: %v", got, numbers[0], err)
	}
	select {
	case <-c.connection.CloseChan():
	case <-time.After(patience):
		return errors.New("the connection stays")
	}
	fmt.Println("left by the server")
	return nil
}

// closeWait closes as a client of Kubernetes does: it resets its streams and goes away.
func closeWait(c *client, _ []int) error {
	stream, err := c.open("idle", 0)
	if err != nil {
		return err
	}
	stream.Reset()
	if err := c.connection.CloseWait(); err != nil {
		return err
	}
	fmt.Println("closed")
	return nil
}

// vanish breaks off in the middle of everything.
func vanish(c *client, _ []int) error {
	var streams []*spdystream.Stream
	// The package stops at a stream that isn't read, so the one that sends comes last.
	for _, kind := range []string{"idle", "echo", "sink", "source"} {
		stream, err := c.open(kind, 1<<30)
		if err != nil {
			return err
		}
		streams = append(streams, stream)
	}
	if _, err := io.ReadFull(streams[3], make([]byte, 1<<20)); err != nil {
		return err
	}
	for _, stream := range streams {
		go stream.Write(make([]byte, 1<<20))
	}
	c.socket.(*net.TCPConn).SetLinger(0)
	fmt.Println("gone")
	return c.socket.Close()
}
