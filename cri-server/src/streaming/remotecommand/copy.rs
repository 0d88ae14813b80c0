//! Bytes between a client and a process. What the client doesn't take is not read from the process.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::super::CHUNK;
use super::{Reader, Writer};
use crate::container::stream::{Input, Output, PIPE};

/// How long after the process's end its descendants may leave a pipe without output.
const LINGER: Duration = Duration::from_secs(1);

/// Copies output until it ends. What the process wrote is in the pipe when it ends, so after that
/// no more is taken than a pipe holds: a descendant that keeps the pipe open doesn't keep the
/// client, and the last words are not lost.
///
/// # Errors
/// When the client takes no more.
pub(super) async fn output(
    from: Option<&mut Output>,
    mut to: Option<&mut Writer>,
    exited: &CancellationToken,
) -> io::Result<()> {
    let Some(from) = from else {
        return close(to).await;
    };
    let mut buffer = vec![0; CHUNK];
    let mut rest = None;
    loop {
        let read = match rest {
            Some(0) => break,
            Some(_) => match tokio::time::timeout(LINGER, from.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => break,
            },
            None => tokio::select! {
                read = from.read(&mut buffer) => read,
                () = exited.cancelled() => {
                    rest = Some(PIPE);
                    continue;
                }
            },
        };
        // A pipe or terminal that fails to be read has ended, too.
        let count = read.unwrap_or(0);
        if count == 0 {
            break;
        }
        rest = rest.map(|rest| rest.saturating_sub(count));
        if let Some(to) = &mut to {
            to.write_all(buffer.get(..count).unwrap_or_default())
                .await?;
        }
    }
    close(to).await
}

async fn close(to: Option<&mut Writer>) -> io::Result<()> {
    match to {
        Some(to) => to.shutdown().await,
        None => Ok(()),
    }
}

/// Copies input until the client's ends, which then is the end of the file for the process. What a
/// process that reads no more is sent is thrown away, so that the rest of the connection goes on.
pub(super) async fn input(from: Option<&mut Reader>, to: &mut Option<Input>) {
    let Some(from) = from else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break,
            // The connection broke: no end of the file was meant. Its end is noticed elsewhere.
            Err(_) => return,
            Ok(count) => count,
        };
        if let Some(process) = to
            && let Err(error) = process.write(buffer.get(..count).unwrap_or_default()).await
        {
            tracing::debug!(%error, "the process reads no more");
            *to = None;
        }
    }
    if let Some(process) = to.take()
        && let Err(failure) = process.finish().await
    {
        tracing::debug!(%failure, "the process was not told that its input ended");
    }
}

#[cfg(test)]
mod tests;
