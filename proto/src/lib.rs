//! CRI v1 on the wire.
