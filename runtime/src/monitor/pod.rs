//! The pod as a kernel object: its namespaces, its cgroup, and the cgroups of what ended and is
//! still dying.

use oci_spec::runtime::{LinuxCpuBuilder, LinuxResourcesBuilder};
use rustix::fd::OwnedFd;

use super::children::RunningExec;
use super::wire::{CreatePod, PidMode, PodPaths};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::error::{Doing, Error, Result};
use crate::features::Features;
use crate::namespaces::PodNamespaces;

/// CPU weight of a pause process: the least there is (CRI contract, RunPodSandbox).
const PAUSE_SHARES: u64 = 2;

/// The pod: what its containers share.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) features: Features,
    pub(super) hierarchies: Hierarchies,
    namespaces: Option<PodNamespaces>,
    cgroup: Cgroup,
    paths: PodPaths,
    pub(super) leftovers: Leftovers,
}

impl Pod {
    /// Makes namespaces and cgroup; on failure nothing remains.
    pub(super) fn create(request: &CreatePod, network: Option<OwnedFd>) -> Result<Self> {
        let features = Features::probe()?;
        let hierarchies = Hierarchies::probe()?;
        let (cgroup, created) = hierarchies.create(&request.cgroup)?;
        let made = pause_cgroup(&hierarchies, request)
            .and_then(|pause| PodNamespaces::create(request, network, pause.as_ref(), &features));
        let namespaces = made.map_err(|error| with_cleanup(error, cgroup.remove()))?;
        let mut paths = namespaces.paths(rustix::process::getpid().as_raw_nonzero().get());
        paths.created_cgroups = created;
        Ok(Self {
            features,
            hierarchies,
            namespaces: Some(namespaces),
            cgroup,
            paths,
            leftovers: Leftovers::default(),
        })
    }

    pub(super) fn paths(&self) -> &PodPaths {
        &self.paths
    }

    /// The network namespace, to be handed out.
    pub(super) fn network(&self) -> Result<Option<OwnedFd>> {
        let network = self.namespaces.as_ref().and_then(PodNamespaces::network_fd);
        network
            .map(|network| network.try_clone_to_owned())
            .transpose()
            .doing(|| "duplicate the network namespace's descriptor")
    }

    /// Kills what is left in the pod's cgroup, lets go of the namespaces (which ends a pause
    /// process) and removes the cgroups, the parents made for them included. May be repeated.
    pub(super) fn release(&mut self) -> Result<()> {
        self.cgroup.kill()?;
        self.namespaces = None;
        self.cgroup.remove()
    }

    /// An exec ended after its container.
    pub(super) fn exec_ended(&mut self, exec: RunningExec) -> Result<()> {
        let killed = exec.cgroup.kill();
        self.leftovers.add(exec.cgroup);
        killed
    }

    /// Tries again to remove what ended containers left; true if all is gone.
    pub(super) fn sweep(&mut self) -> bool {
        self.leftovers.sweep()
    }
}

/// A pause process has a group of its own: on v2 a group with sub-groups holds no process.
fn pause_cgroup(hierarchies: &Hierarchies, request: &CreatePod) -> Result<Option<Cgroup>> {
    if request.pid != PidMode::Pod {
        return Ok(None);
    }
    let (cgroup, _inside_the_pods) = hierarchies.create(&format!("{}/pause", request.cgroup))?;
    let resources = LinuxCpuBuilder::default()
        .shares(PAUSE_SHARES)
        .build()
        .and_then(|cpu| LinuxResourcesBuilder::default().cpu(cpu).build())
        .map_err(|error| Error::invalid(format!("the pause process's weight: {error}")))?;
    cgroup.apply(&resources)?;
    Ok(Some(cgroup))
}

/// Cgroups that can't be removed yet, as something in them is still dying.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Vec<Cgroup>);

impl Leftovers {
    /// Removes a group, now or later.
    pub(super) fn add(&mut self, cgroup: Cgroup) {
        if !removed(&cgroup) {
            self.0.push(cgroup);
        }
    }

    /// Takes over what another couldn't remove.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tries again; true if all is gone.
    pub(super) fn sweep(&mut self) -> bool {
        self.0.retain(|cgroup| !removed(cgroup));
        self.0.is_empty()
    }
}

/// Removes a group unless that would mean waiting for its processes.
fn removed(cgroup: &Cgroup) -> bool {
    !cgroup.is_populated().unwrap_or(false) && cgroup.remove().is_ok()
}

/// An error, and that undoing what it stopped failed as well.
pub(super) fn with_cleanup(error: Error, cleanup: Result<()>) -> Error {
    match cleanup {
        Ok(()) => error,
        Err(cleanup) => Error::new(
            error.kind(),
            format!("{error} (and its clean-up failed: {cleanup})"),
        ),
    }
}
