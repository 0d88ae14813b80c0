//! Asks the kernel whether a socket of the node already has a port a pod wants.
//!
//! Destination NAT would silently take the port away from that listener, so it is refused instead.
//! The probe socket is closed at once: between probe and rule a listener may still appear, which
//! then simply gets no traffic, as with every NAT host port.

use std::net::SocketAddr;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::hostport::{Claim, Protocol};
use crate::failure::{Class, Doing as _, Failure};

/// Fails when a socket of the node holds one of `claims`. Runs in the node's network namespace.
///
/// # Errors
/// "host port 8080/tcp on 0.0.0.0 is already in use by a process of the node".
pub(crate) fn probe(claims: &[Claim]) -> Result<(), Failure> {
    // A module not loaded has no listeners; opening a socket would load it, and SCTP is a module
    // that hardened nodes do not want loaded on a whim.
    let sctp = Path::new("/proc/thread-self/net/sctp").exists();
    for claim in claims {
        if claim.protocol != Protocol::Sctp || sctp {
            probe_one(claim)?;
        }
    }
    Ok(())
}

fn probe_one(claim: &Claim) -> Result<(), Failure> {
    let doing = || format!("probe host port {claim}");
    let family = if claim.address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (kind, protocol) = match claim.protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = match socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)) {
        Ok(socket) => socket,
        // A node without the family has no listener of it.
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        Err(error) => return Err(error).doing(doing()),
    };
    if claim.protocol != Protocol::Udp {
        // Connections in TIME_WAIT do not count; a listener still does.
        sockopt::set_socket_reuseaddr(&socket, true).doing(doing())?;
    }
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true).doing(doing())?;
    }
    match bind(&socket, &SocketAddr::new(claim.address, claim.port)) {
        // An address the node does not have now may come later (a floating one), and no socket can
        // be in the way of it.
        Ok(()) | Err(Errno::ADDRNOTAVAIL) => Ok(()),
        Err(Errno::ADDRINUSE) => Err(Failure::new(
            Class::Precondition,
            format!("host port {claim} is already in use by a process of the node"),
        )),
        Err(error) => Err(error).doing(doing()),
    }
}
