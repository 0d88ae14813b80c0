//go:build tools

// Package tools pins the peers that `make bench` compares with.
package tools
