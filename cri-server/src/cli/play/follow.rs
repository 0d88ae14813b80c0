//! While play stays attached: logs as they come, and containers started again as their policy says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_proto::runtime::v1;

use super::backoff::Backoff;
use super::log::{LogReader, Screen};
use super::plan::{ContainerPlan, Role};
use super::run::{Running, ended, ran};
use crate::cli::pods::container_name;
use crate::cli::terminal::safe;

/// How often logs are looked at.
const LOG_PERIOD: Duration = Duration::from_millis(200);
/// How many of those between two looks at the containers.
const LOOKS: u32 = 3;

/// How following ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All main containers are done; whether each ended with 0.
    Done { well: bool },
    /// The user had enough; the pod goes on.
    Detached,
}

/// One container and what is known of it.
struct Watched<'a> {
    plan: &'a ContainerPlan,
    log: LogReader,
    attempt: u32,
    backoff: Backoff,
    /// Its code, once it ended for good.
    done: Option<i32>,
    /// When the next attempt is due.
    due: Option<Instant>,
}

/// Follows the pod until its main containers are done or the user interrupts.
pub(super) async fn follow(running: &mut Running<'_>) -> anyhow::Result<End> {
    let plan = running.plan;
    let names = plan
        .containers
        .iter()
        .map(|container| container.name.as_str());
    let screen = Screen::new(names);
    let mut watched: Vec<_> = plan
        .containers
        .iter()
        .enumerate()
        .map(|(index, container)| Watched {
            log: LogReader::new(
                &screen,
                &container.name,
                index,
                &running.log_path(&container.name, 0),
            ),
            plan: container,
            attempt: 0,
            backoff: Backoff::default(),
            done: None,
            due: None,
        })
        .collect();
    let mut ticks = tokio::time::interval(LOG_PERIOD);
    for tick in 0_u32.. {
        tokio::select! {
            _ = ticks.tick() => {}
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(End::Detached);
            }
        }
        for container in &mut watched {
            container.log.drain()?;
        }
        if tick.is_multiple_of(LOOKS)
            && let Some(end) = look(running, &mut watched).await?
        {
            for container in &mut watched {
                container.log.drain()?;
            }
            return Ok(end);
        }
    }
    Ok(End::Detached)
}

/// Looks at the containers and acts on those that ended.
async fn look(
    running: &mut Running<'_>,
    watched: &mut [Watched<'_>],
) -> anyhow::Result<Option<End>> {
    let listed = running.containers().await?;
    if listed.is_empty() {
        eprintln!("the pod was taken down");
        return Ok(Some(End::Detached));
    }
    for container in watched.iter_mut() {
        let newest = listed
            .iter()
            .find(|c| container_name(c) == container.plan.name);
        let Some(newest) = newest else { continue };
        container.catch_up(running, newest)?;
        if newest.state() == v1::ContainerState::ContainerExited && container.done.is_none() {
            container.after_exit(running, newest).await?;
        }
    }
    let mains = || {
        watched
            .iter()
            .filter(|container| container.plan.role == Role::Main)
    };
    if !mains().all(|container| container.done.is_some()) {
        return Ok(None);
    }
    let well = mains().all(|container| container.done == Some(0));
    let sidecars: Vec<_> = watched
        .iter()
        .filter(|container| container.plan.role == Role::Sidecar)
        .filter_map(|container| {
            listed
                .iter()
                .find(|c| container_name(c) == container.plan.name)
        })
        .map(|container| container.id.clone())
        .collect();
    for id in sidecars {
        running.stop(&id).await?;
    }
    Ok(Some(End::Done { well }))
}

impl Watched<'_> {
    /// Init containers may have had several attempts before following began.
    fn catch_up(&mut self, running: &Running<'_>, newest: &v1::Container) -> anyhow::Result<()> {
        let attempt = newest
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.attempt);
        while self.attempt < attempt {
            self.attempt += 1;
            let path: PathBuf = running.log_path(&self.plan.name, self.attempt);
            self.log.switch(&path)?;
        }
        Ok(())
    }

    async fn after_exit(
        &mut self,
        running: &mut Running<'_>,
        newest: &v1::Container,
    ) -> anyhow::Result<()> {
        if let Some(due) = self.due {
            if due <= Instant::now() {
                self.due = None;
                self.attempt += 1;
                // The log first: a start that fails has written its own.
                self.log
                    .switch(&running.log_path(&self.plan.name, self.attempt))?;
                if let Err(error) = running.launch(self.plan, self.attempt).await {
                    // The next look finds it exited and waits longer.
                    eprintln!("{}", safe(&format!("{error:#}")));
                }
            }
            return Ok(());
        }
        let status = running.status(&newest.id).await?;
        let code = status.exit_code;
        if self.plan.role != Role::Init {
            eprintln!(
                "{}",
                safe(&format!("{} {}", self.plan.name, ended(&status)))
            );
        }
        if self.plan.role != Role::Init && self.plan.restarts(running.plan.restart, code) {
            let wait = self.backoff.next(ran(&status));
            self.due = Some(Instant::now() + wait);
            eprintln!(
                "{} starts again in {} s",
                safe(&self.plan.name),
                wait.as_secs()
            );
        } else {
            self.done = Some(code);
        }
        Ok(())
    }
}
