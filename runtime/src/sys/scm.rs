//! Bytes and descriptors over unix stream sockets (unix(7), SCM_RIGHTS), for both ends of the
//! monitor's protocol. Owns nothing; both calls work on blocking and non-blocking sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors one call carries. More from a peer are closed by the kernel and reported.
pub const MAX_DESCRIPTORS: usize = 8;

/// Control-message space for [`MAX_DESCRIPTORS`] descriptors.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Sends some of `bytes`, and all of `descriptors` with their first byte. Returns how many bytes
/// went; if any did, the descriptors went too. Never raises SIGPIPE.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOMANYREFS);
    }
    retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); CONTROL];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOMANYREFS);
        }
        sendmsg(
            socket.as_fd(),
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
}

/// Receives up to `buffer.len()` bytes and appends the descriptors that came with them, each
/// close-on-exec. Zero bytes is the end of the stream. If the peer sent more descriptors than fit
/// (or this process can't hold), the result is `TOOMANYREFS` and none is kept.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let before = descriptors.len();
    let received = retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); CONTROL];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok(received)
    })?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        descriptors.truncate(before);
        return Err(Errno::TOOMANYREFS);
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_come_with_the_first_byte_of_what_they_were_sent_with() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(&a, b"plain", &[]).unwrap();
        send(&a, b"with", &[write.as_fd()]).unwrap();
        drop(write);
        let mut descriptors = Vec::new();
        let mut buffer = [0; 5];
        assert_eq!(receive(&b, &mut buffer, &mut descriptors), Ok(5));
        assert!(descriptors.is_empty());
        assert_eq!(receive(&b, &mut buffer[..1], &mut descriptors), Ok(1));
        assert_eq!(descriptors.len(), 1);
        rustix::io::write(&descriptors[0], b"through").unwrap();
        descriptors.clear();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn more_descriptors_than_the_bound_are_an_error_on_either_side() {
        let (a, b) = UnixStream::pair().unwrap();
        let nine = [a.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(&a, b"x", &nine), Err(Errno::TOOMANYREFS));
        // A foreign sender isn't bound by our check.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let many = [a.as_fd(); 32];
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let mut descriptors = Vec::new();
        assert_eq!(
            receive(&b, &mut [0; 1], &mut descriptors),
            Err(Errno::TOOMANYREFS)
        );
        assert!(descriptors.is_empty());
    }

    #[test]
    fn a_closed_peer_is_an_error_and_no_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert_eq!(send(&a, b"x", &[]), Err(Errno::PIPE));
    }
}
