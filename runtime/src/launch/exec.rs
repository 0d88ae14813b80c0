//! An exec: no namespaces, mounts or nodes are made; all of the container's are entered by its init's
//! pidfd. From there it is the same path as a container's init (F1).

use super::channel::Channel;
use super::child::{Kind, Work};
use super::listener::Agent;
use super::parent::{self, Launch, Streams};
use super::{ExecInput, Launched};
use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::plan;
use crate::sys::fd::KeepList;

pub(super) fn exec(input: ExecInput<'_>) -> Result<Launched> {
    crate::spec::exec_process(input.process)?;
    if let Some(obstacle) = input.cgroup.and_then(Cgroup::obstacle) {
        return Err(obstacle.into());
    }
    let process = plan::process(input.process, input.user, input.features)?;
    let seccomp = parent::program(input.seccomp)?;
    let agent = Agent::connect(input.filter)?;
    let streams = Streams::prepare(input.stdio, &process, input.user)?;
    let channel = Channel::new()?;
    let fds = streams.fds();
    let cgroup = parent::join_files(input.cgroup)?;
    let keep = [channel.child_end()]
        .into_iter()
        .chain(fds.into_iter().flatten());
    let work = Work {
        kind: Kind::Exec {
            init: input.init,
            user: input.user.is_some(),
        },
        cgroup: &cgroup,
        keep: KeepList::new(keep),
        process: &process,
        seccomp: seccomp.as_ref(),
        filter_flags: input.filter.flags,
        streams: fds,
        last_capability: input.features.last_capability,
    };
    let launch = Launch {
        id: input.id,
        work: &work,
        plan: None,
        namespaces: 0,
        cgroup: input.cgroup,
        agent: agent.as_ref(),
    };
    parent::drive(&launch, channel)
}
