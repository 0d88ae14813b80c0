//! The monitors of this node's pods: starting one, finding one again, hearing from all.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::monitor::start::{self, MonitorImage, MonitorProcess, StartOptions, Starter};
use bulkhead_runtime::monitor::wire::Event;
use tokio::sync::{mpsc, oneshot};

use super::Link;
use super::expected::Expected;
use crate::failure::{Class, Doing, Failure};
use crate::ops::tasks::Tasks;
use crate::records::MonitorRecord;

/// Events of one pod that may wait for the daemon; a monitor that sends more waits.
const EVENT_QUEUE: usize = 64;

/// Between the end of a monitor's connection and that of its process.
const REAP_AGAIN: Duration = Duration::from_millis(50);

/// What is heard of a pod's monitor.
#[derive(Debug)]
pub enum Notice {
    /// A container or the pause process ended.
    Event(Event),
    /// The connection ended: the monitor is gone, or going.
    Lost,
}

/// How an exec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecEnd {
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
    /// It was killed because its time was up.
    pub timed_out: bool,
}

/// How an attachment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachEnd {
    /// Why the monitor gave the client up; none if the container or the client ended it.
    pub dropped: Option<String>,
}

/// The monitors. Cheap to clone.
#[derive(Clone)]
pub struct Monitors {
    shared: Arc<Shared>,
}

struct Shared {
    starter: Starter,
    tasks: Tasks,
    links: Mutex<HashMap<String, Link>>,
    execs: Expected<ExecEnd>,
    attaches: Expected<AttachEnd>,
    notices: mpsc::Sender<(String, Notice)>,
}

impl fmt::Debug for Monitors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitors").finish_non_exhaustive()
    }
}

impl Monitors {
    /// Loads the monitor's executable and begins the thread that starts monitors; what is heard goes to `notices` with the pod's id.
    ///
    /// # Errors
    /// When the executable can't be read or sealed.
    pub fn new(
        executable: &Path,
        hierarchies: &Hierarchies,
        tasks: Tasks,
        notices: mpsc::Sender<(String, Notice)>,
    ) -> Result<Self, Failure> {
        let starter = Starter::new(MonitorImage::load(executable)?, hierarchies)?;
        let shared = Shared {
            starter,
            tasks,
            links: Mutex::default(),
            execs: Expected::default(),
            attaches: Expected::default(),
            notices,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Starts the monitor of a new pod and connects to it.
    ///
    /// # Errors
    /// When it can't be started or doesn't greet.
    pub async fn start(&self, pod: &str, directory: PathBuf) -> Result<MonitorRecord, Failure> {
        let (shared, pod_id, folder) = (self.shared.clone(), pod.to_owned(), directory.clone());
        let process = self
            .shared
            .tasks
            .blocking(move || {
                let socket = start::listen(&folder)?;
                shared.starter.start(StartOptions {
                    pod_id,
                    socket,
                    log: None,
                })
            })
            .await
            .doing("start the pod's monitor")??;
        let record = MonitorRecord {
            pid: process.pid,
            start_ticks: process.start_ticks,
        };
        let connected = self.connect(pod, &directory).await;
        self.reap_at_its_end(process, connected.as_ref().ok().cloned());
        connected.map(|_| record)
    }

    /// Takes the status of a monitor this daemon started once its connection has ended, so that no
    /// zombie stays.
    fn reap_at_its_end(&self, process: MonitorProcess, link: Option<Link>) {
        drop(self.shared.tasks.spawn_untracked("reap monitor", async move {
            if let Some(link) = link {
                link.closed().await;
            }
            loop {
                match process.try_reap() {
                    Ok(false) => tokio::time::sleep(REAP_AGAIN).await,
                    Ok(true) => return,
                    Err(error) => {
                        tracing::warn!(monitor = process.pid, %error, "could not be reaped");
                        return;
                    }
                }
            }
        }));
    }

    /// Removes what was made for a monitor that has ended.
    ///
    /// # Errors
    /// When its cgroup can't be removed.
    pub async fn clean_up(&self, pod: &str) -> Result<(), Failure> {
        let (shared, pod) = (self.shared.clone(), pod.to_owned());
        let cleaned = self
            .shared
            .tasks
            .blocking(move || shared.starter.clean_up(&pod));
        cleaned
            .await
            .doing("remove the monitor's cgroup")?
            .map_err(Failure::from)
    }

    /// Connects to the monitor of a pod that was there before this daemon.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn connect(&self, pod: &str, directory: &Path) -> Result<Link, Failure> {
        let (events, heard) = mpsc::channel(EVENT_QUEUE);
        let (link, _pid) = Link::connect(directory, &self.shared.tasks, events).await?;
        self.links().insert(pod.to_owned(), link.clone());
        let (this, pod) = (self.clone(), pod.to_owned());
        drop(
            self.shared
                .tasks
                .spawn_untracked("monitor events", async move {
                    this.pass_on(pod, heard).await;
                }),
        );
        Ok(link)
    }

    async fn pass_on(&self, pod: String, mut heard: mpsc::Receiver<Event>) {
        while let Some(event) = heard.recv().await {
            let notice = match event {
                Event::ExecExited {
                    id,
                    exit_code,
                    timed_out,
                } => {
                    let end = ExecEnd {
                        exit_code,
                        timed_out,
                    };
                    self.shared.execs.ended(&id, end);
                    continue;
                }
                Event::AttachEnded { id, dropped } => {
                    self.shared.attaches.ended(&id, AttachEnd { dropped });
                    continue;
                }
                event => Notice::Event(event),
            };
            if self
                .shared
                .notices
                .send((pod.clone(), notice))
                .await
                .is_err()
            {
                return;
            }
        }
        self.shared.execs.lost(&pod);
        self.shared.attaches.lost(&pod);
        if self.links().contains_key(&pod) {
            // The receiver is gone only when the daemon is ending.
            drop(self.shared.notices.send((pod, Notice::Lost)).await);
        }
    }

    /// The connection to a pod's monitor.
    ///
    /// # Errors
    /// [`Class::Unavailable`] when there is none.
    pub fn link(&self, pod: &str) -> Result<Link, Failure> {
        self.links()
            .get(pod)
            .filter(|link| !link.is_closed())
            .cloned()
            .ok_or_else(|| {
                Failure::new(
                    Class::Unavailable,
                    format!("the monitor of pod {pod} is not there"),
                )
            })
    }

    /// The pod is going: the end of its connection is no news.
    pub fn forget(&self, pod: &str) {
        self.links().remove(pod);
    }

    /// Registers interest in the end of an exec, before it is asked for.
    pub fn expect_exec(&self, pod: &str, id: &str) -> oneshot::Receiver<ExecEnd> {
        self.shared.execs.expect(pod, id)
    }

    /// Nobody waits for this exec any more.
    pub fn forget_exec(&self, id: &str) {
        self.shared.execs.forget(id);
    }

    /// Registers interest in the end of an attachment, before it is asked for.
    pub fn expect_attach(&self, pod: &str, id: &str) -> oneshot::Receiver<AttachEnd> {
        self.shared.attaches.expect(pod, id)
    }

    /// Nobody waits for this attachment any more.
    pub fn forget_attach(&self, id: &str) {
        self.shared.attaches.forget(id);
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<String, Link>> {
        self.shared
            .links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
