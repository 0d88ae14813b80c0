//! A connection to a port of a pod, as from inside the pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::{TcpSocket, TcpStream};

use crate::failure::{Class, Doing as _, Failure};
use crate::network::netns;
use crate::node::NodeHandle;
use crate::records::PodRecord;

/// How long the pod's loopback may take; a rule of the pod's own may swallow packets there.
const LIMIT: Duration = Duration::from_secs(10);

/// Checks what can be checked before there is a client; returns the pod's full id.
///
/// # Errors
/// When there is no such pod, or it isn't ready.
pub fn check(node: &NodeHandle, id: &str) -> Result<String, Failure> {
    let snapshot = node.records.snapshot();
    ready(snapshot.find_pod(id)?).map(|pod| pod.id.clone())
}

fn ready(pod: &PodRecord) -> Result<&PodRecord, Failure> {
    if !pod.is_ready() {
        return Err(Failure::precondition(format!(
            "forward to pod sandbox {}: it is not ready",
            pod.id
        )));
    }
    Ok(pod)
}

/// Connects to `port` on the pod's loopback: IPv4, and if nothing answers there, IPv6 ("localhost"
/// has two families, case X5). The addresses are literal, so no file of the pod leads elsewhere
/// (threat J6).
///
/// # Errors
/// When the pod isn't ready, or nothing answers; says why for both families.
pub async fn connect(node: &NodeHandle, pod: &str, port: u16) -> Result<TcpStream, Failure> {
    let netns = {
        let snapshot = node.records.snapshot();
        namespace(ready(snapshot.find_pod(pod)?)?)?
    };
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let first = match attempt(node, netns.as_ref(), v4).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    attempt(node, netns.as_ref(), v6).await.map_err(|second| {
        Failure::new(
            Class::Unavailable,
            format!("connect to port {port} of pod sandbox {pod}: {v4}: {first}; {v6}: {second}"),
        )
    })
}

/// The pod's network namespace; none is the node's.
fn namespace(pod: &PodRecord) -> Result<Option<OwnedFd>, Failure> {
    if pod.paths.network.is_none() {
        return Ok(None);
    }
    let path = pod.netns.as_ref().ok_or_else(|| {
        Failure::precondition(format!(
            "the network namespace of pod sandbox {} is gone",
            pod.id
        ))
    })?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .doing(format!("open the network namespace {}", path.display()))
        .map(Some)
}

/// A socket stays in the namespace of the thread that made it, so only that happens inside.
async fn attempt(
    node: &NodeHandle,
    netns: Option<&OwnedFd>,
    to: SocketAddr,
) -> Result<TcpStream, Failure> {
    let make = move || {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        socket.doing("make a socket")
    };
    let socket = match netns {
        None => make()?,
        Some(netns) => {
            let netns = netns.try_clone().doing("hold the network namespace")?;
            node.tasks
                .blocking(move || netns::inside(netns.as_fd(), make))
                .await
                .doing("enter the pod")??
        }
    };
    let connected = tokio::time::timeout(LIMIT, socket.connect(to));
    let connected = connected
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = connected.map_err(|error| Failure::new(Class::Unavailable, error.to_string()))?;
    stream.set_nodelay(true).doing("send without delay")?;
    Ok(stream)
}
