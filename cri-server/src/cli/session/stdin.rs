//! Standard input, whatever it is. Files can't be polled, so a thread reads it; the process ends
//! without waiting for that, as a terminal may never say another word.

use std::io::{self, Read as _};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Input;

/// Reads that wait to be sent.
const AHEAD: usize = 4;

/// Starts reading.
pub(super) fn read() -> Input {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        // What can't be read has ended.
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next of it; none at its end. Never if it isn't read, or has ended before.
pub(super) async fn next(input: &mut Option<Input>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}
