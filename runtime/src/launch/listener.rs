//! Handing a filter's notifications to the agent that answers them.
//!
//! The agent listens on a unix stream socket; it gets one message, the container process state as JSON, with
//! the descriptor (OCI runtime specification, config-linux.md "The Container Process State"). Nothing
//! here waits: an agent that isn't there, or doesn't take the message at once, fails the start.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{ContainerProcessState, ContainerState, SECCOMP_FD_NAME, State};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

use crate::error::{Doing, Error, Result};
use crate::plan::seccomp::{FilterOptions, Listener};

/// The version of the runtime specification the message follows.
const OCI_VERSION: &str = "1.2.0";

/// A connection to an agent, made before the process is.
pub(super) struct Agent<'a> {
    socket: OwnedFd,
    listener: &'a Listener,
}

impl<'a> Agent<'a> {
    /// Connects to the agent a filter names, if it names one.
    pub(super) fn connect(options: &'a FilterOptions) -> Result<Option<Self>> {
        let Some(listener) = &options.listener else {
            return Ok(None);
        };
        let doing = || {
            let path = listener.path.display();
            format!("connect to the seccomp agent at listenerPath {path}")
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .doing(doing)?;
        let address = SocketAddrUnix::new(&listener.path).doing(doing)?;
        connect(&socket, &address).doing(doing)?;
        Ok(Some(Self { socket, listener }))
    }

    /// Hands over the descriptor of the process `pid`'s filter.
    pub(super) fn tell(&self, id: &str, pid: i32, filter: BorrowedFd<'_>) -> Result<()> {
        let doing = || format!("hand the seccomp filter of {id} to its agent");
        let message = serde_json::to_vec(&self.state(id, pid))
            .map_err(|error| Error::invalid(format!("{}: {error}", doing())))?;
        let fds = [filter];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::invalid(format!("{}: no room", doing())));
        }
        let sent = sendmsg(
            self.socket.as_fd(),
            &[IoSlice::new(&message)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .doing(doing)?;
        if sent == message.len() {
            return Ok(());
        }
        Err(Error::invalid(format!("{}: it took a part only", doing())))
    }

    fn state(&self, id: &str, pid: i32) -> ContainerProcessState {
        let mut container = State::default();
        container
            .set_version(OCI_VERSION.to_owned())
            .set_id(id.to_owned())
            .set_status(ContainerState::Creating)
            .set_pid(Some(pid));
        let mut state = ContainerProcessState::default();
        state
            .set_version(OCI_VERSION.to_owned())
            .set_fds(vec![SECCOMP_FD_NAME.to_owned()])
            .set_pid(pid)
            .set_metadata(self.listener.metadata.clone())
            .set_state(container);
        state
    }
}
