//! A pod's systemd scope: made around its monitor, over D-Bus.
//!
//! A scope lives while a process is in it, and systemd takes it away with the last one: so the
//! monitor, which lives as long as its pod, is what it is started with, and nothing has to be
//! stopped. The monitor goes on in a group of its own in the scope, since a v2 group with
//! sub-groups holds no process, and because the pod's group is killed as a whole.
//!
//! org.freedesktop.systemd1(5) has the calls. The job is waited for by its JobRemoved signal, which
//! is listened to before the call: a quick job ends before its path is known.

use std::time::Duration;

use bulkhead_runtime::cgroup::{Hierarchies, Mode};
use futures_util::StreamExt as _;
use zbus::zvariant::{OwnedObjectPath, Value};
use zbus::{Connection, Proxy};

use crate::failure::{Class, Doing, Failure};
use crate::node::NodeHandle;
use crate::spec::cgroup::Scope;

/// How long systemd may take for a scope: milliseconds, unless it is reloading.
const LIMIT: Duration = Duration::from_secs(30);

/// At the node's shutdown systemd ends what is left in the scope: the kubelet has stopped pods in
/// order before, and monitors ignore SIGTERM.
const STOP_MICROSECONDS: u64 = 10_000_000;

/// Puts a new monitor into its pod's scope.
///
/// # Errors
/// When systemd doesn't make the scope, or the monitor can't be moved within it.
pub async fn start(node: &NodeHandle, scope: &Scope, monitor: i32) -> Result<(), Failure> {
    let doing = format!("start the unit {}", scope.name);
    tokio::time::timeout(LIMIT, ask(scope, monitor))
        .await
        .map_err(|_| {
            Failure::new(
                Class::Deadline,
                format!("systemd has not done it in {LIMIT:?}"),
            )
        })
        .and_then(|done| done)
        .map_err(|failure| failure.context(doing))?;
    let (hierarchies, path) = (node.hierarchies.clone(), scope.path.clone());
    let moved = node.tasks.blocking(move || {
        let Some(group) = hierarchies.open(&path)? else {
            return Err(Failure::internal(format!("systemd made no cgroup {path}")));
        };
        Ok(group.child("monitor")?.add(monitor)?)
    });
    moved.await.doing("move the monitor into its group")?
}

/// Whether this node can have the systemd driver at all; asked once, at the daemon's start.
///
/// # Errors
/// What it lacks.
pub async fn check(hierarchies: &Hierarchies) -> Result<(), Failure> {
    let lacks = |what: &str| {
        Failure::precondition(format!(
            "cgroup.driver is systemd, but this node has {what}"
        ))
    };
    if hierarchies.mode() != Mode::Unified {
        return Err(lacks("no pure cgroup v2; use cgroupfs"));
    }
    let version = async {
        let connection = Connection::system().await?;
        manager(&connection)
            .await?
            .get_property::<String>("Version")
            .await
    };
    let version = tokio::time::timeout(LIMIT, version)
        .await
        .map_err(|_| lacks("a systemd that doesn't answer"))?
        .map_err(|error| lacks("no systemd on its system bus").context(error))?;
    tracing::info!(version, "cgroups are made by systemd");
    Ok(())
}

async fn manager(connection: &Connection) -> zbus::Result<Proxy<'static>> {
    Proxy::new(
        connection,
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
    )
    .await
}

/// A connection for each scope: one that is kept would have to be found dead first.
async fn ask(scope: &Scope, monitor: i32) -> Result<(), Failure> {
    let call = async {
        let connection = Connection::system().await?;
        let manager = manager(&connection).await?;
        // Without it systemd sends no signals.
        manager.call_method("Subscribe", &()).await?;
        let mut ended = manager.receive_signal("JobRemoved").await?;
        let none: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        let request = (
            scope.name.as_str(),
            "fail",
            properties(scope, monitor),
            none,
        );
        let job: OwnedObjectPath = manager.call("StartTransientUnit", &request).await?;
        while let Some(signal) = ended.next().await {
            let body = signal.body();
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                body.deserialize()?;
            if path == job {
                return Ok(Some(result));
            }
        }
        Ok::<_, zbus::Error>(None)
    };
    match call.await.doing("ask systemd")? {
        Some(result) if result == "done" => Ok(()),
        Some(result) => Err(Failure::internal(format!(
            "systemd's job ended as {result:?}"
        ))),
        None => Err(Failure::internal("the bus closed the connection")),
    }
}

/// Typed values only: nothing of a request becomes a property but the slice, whose name was checked
/// (threat I2).
fn properties(scope: &Scope, monitor: i32) -> Vec<(&'static str, Value<'_>)> {
    vec![
        ("Description", Value::from("a pod of Bulkhead")),
        ("Slice", Value::from(scope.slice.as_str())),
        ("Delegate", Value::from(true)),
        ("PIDs", Value::from(vec![monitor.cast_unsigned()])),
        // The node's default for units is no limit of pods: those stand in their own groups.
        ("TasksMax", Value::from(u64::MAX)),
        ("TimeoutStopUSec", Value::from(STOP_MICROSECONDS)),
        // Failed or not, nothing of it stays.
        ("CollectMode", Value::from("inactive-or-failed")),
    ]
}
