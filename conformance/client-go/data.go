package main

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
)

// A stream of bytes without a pattern, always the same, that knows its own checksum.
type noise struct {
	source *rand.ChaCha8
	left   int64
	sum    hash.Hash
}

func newNoise(length int64) *noise {
	return &noise{source: rand.NewChaCha8([32]byte{7}), left: length, sum: sha256.New()}
}

func (n *noise) Read(into []byte) (int, error) {
	if n.left == 0 {
		return 0, io.EOF
	}
	if int64(len(into)) > n.left {
		into = into[:n.left]
	}
	n.source.Read(into)
	n.sum.Write(into)
	n.left -= int64(len(into))
	return len(into), nil
}

func digest(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

// What is kept of an output as text; the checksum covers all of it.
const kept = 64 << 10

// An output that is counted and summed, and shown from its beginning.
type sink struct {
	lock  sync.Mutex
	sum   hash.Hash
	bytes int64
	text  []byte
	// Called once when that many bytes have come; nil for never.
	enough func()
	limit  int64
}

func newSink() *sink { return &sink{sum: sha256.New()} }

func (s *sink) Write(piece []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.sum.Write(piece)
	s.bytes += int64(len(piece))
	if room := kept - len(s.text); room > 0 {
		s.text = append(s.text, piece[:min(room, len(piece))]...)
	}
	if s.enough != nil && s.bytes >= s.limit {
		s.enough()
		s.enough = nil
	}
	return len(piece), nil
}
