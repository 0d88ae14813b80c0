//! What one connection may hold of the daemon's memory and time.

use std::time::Duration;

/// Bounds of one connection. A client can make it hold about `session_window` of received bytes,
/// twice `output` of bytes to send, two zlib contexts (300 KiB) and `streams` small records.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams open at once; more are refused (REFUSED_STREAM).
    pub streams: usize,
    /// Bytes received and not read yet, per stream: the window announced to the client.
    pub window: u32,
    /// The same for all streams together; at least 64 KiB, the window every session starts with.
    pub session_window: u32,
    /// Bytes waiting to be sent; a writer beyond it waits.
    pub output: usize,
    /// How long a stream whose reader doesn't read may hold back the others of its connection
    /// before it is reset (FLOW_CONTROL_ERROR). `None`: as long as it takes, right where the
    /// streams are parts of one thing, as those of an exec are.
    pub stalled: Option<Duration>,
    /// A connection on which no byte moved for so long is closed.
    pub idle: Duration,
}

impl Default for Limits {
    /// 512 streams carry 256 forwarded connections. Four idle hours are what the other runtimes
    /// grant (`DefaultStreamIdleTimeout` of the kubelet's streaming package).
    fn default() -> Self {
        Self {
            streams: 512,
            window: 256 << 10,
            session_window: 1 << 20,
            output: 256 << 10,
            stalled: None,
            idle: Duration::from_secs(4 * 60 * 60),
        }
    }
}
