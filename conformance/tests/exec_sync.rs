//! Time-outs of ExecSync leave nothing and kill nobody else: case X6.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use tonic::{Code, Status};

/// Calls at a time; each is a handful of processes.
const AT_ONCE: usize = 20;

async fn exec(rig: &Rig, id: &str, script: &str, timeout: i64) -> Result<i32, Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout,
    };
    let answer = rig.node.runtime.clone().exec_sync(request).await?;
    Ok(answer.into_inner().exit_code)
}

/// Runs out of its second, and is told so within another.
async fn times_out(rig: &Rig, id: &str, script: &str) -> Result<()> {
    let begin = Instant::now();
    let refused = exec(rig, id, script, 1).await;
    let took = begin.elapsed();
    let status = refused.err().with_context(|| format!("{script} ended"))?;
    ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
    ensure!(took < Duration::from_secs(2), "{script}: {took:?}");
    Ok(())
}

/// Processes, zombies too, in the PID namespace of a container's init: (pid, state, name).
fn processes_with(init: u32) -> Result<Vec<(u32, char, String)>> {
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        // Of a zombie the namespace can't be read; it shows in its parent's children.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else {
            continue;
        };
        let (head, fields) = stat.rsplit_once(") ").context("a name without end")?;
        let name = head.split_once('(').map_or("", |pair| pair.1).to_owned();
        let mut fields = fields.split(' ');
        let state = fields.next().and_then(|text| text.chars().next());
        let parent: u32 = fields.next().context("no parent")?.parse()?;
        let inside = fs::read_link(path.join("ns/pid")).is_ok_and(|link| link == namespace);
        if inside || parent == init {
            found.push((pid, state.unwrap_or('?'), name));
        }
    }
    Ok(found)
}

/// Waits until the container's namespace holds its init alone.
async fn alone(init: u32) -> Result<()> {
    wait::until("init is alone", Duration::from_secs(5), async || {
        let others = processes_with(init)?;
        Ok(others.iter().all(|(pid, ..)| *pid == init).then_some(()))
    })
    .await
    .with_context(|| format!("{:?}", processes_with(init)))
}

/// Zombies whose parent is the container's monitor.
fn zombies_of(monitor: u32) -> Result<usize> {
    let path = format!("/proc/{monitor}/task/{monitor}/children");
    let children = fs::read_to_string(path)?;
    let is_zombie = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    Ok(children.split_whitespace().filter(is_zombie).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn x6_timed_out_execs_leave_nothing_and_kill_nobody_else() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("x6").await?;
    // An init that reaps what is handed to it, as a shell does.
    let reaps = ["sh", "-c", "while :; do sleep 1; done"];
    let never_reaps = ["probe", "sleep"];
    for (name, command) in [("reaps", &reaps[..]), ("never-reaps", &never_reaps)] {
        let id = rig
            .start_in(&pod, &container(name, busybox, command))
            .await?;
        let init = rig.node.init_pid(&id).await?;
        let monitor = bulkhead_conformance::node::monitor_of(init)?;
        let calls = if name == "reaps" { 200 } else { AT_ONCE };
        for _ in 0..calls / AT_ONCE {
            let one = async || times_out(&rig, &id, "sleep 9999 & sleep 9999").await;
            let all: Vec<_> = (0..AT_ONCE).map(|_| one()).collect();
            futures_util::future::try_join_all(all).await?;
        }
        for script in [
            "trap '' TERM; while :; do sleep 9999; done",
            "(setsid sleep 9999 &) ; sleep 9999",
            "(sh -c 'sleep 9999 & exit 0' &) ; sleep 9999",
        ] {
            times_out(&rig, &id, script).await.context(name)?;
        }
        let other = exec(&rig, &id, "sleep 2; exit 9", 10);
        let (other, timed) = tokio::join!(other, times_out(&rig, &id, "sleep 9999"));
        timed?;
        assert_eq!(other?, 9, "another exec was hit");
        match name {
            "reaps" => {
                // Its own sleep of a second comes and goes.
                wait::until("the commands' end", Duration::from_secs(5), async || {
                    let all = processes_with(init)?;
                    Ok((all.len() <= 2).then_some(()))
                })
                .await
                .with_context(|| format!("{:?}", processes_with(init)))?;
            }
            _ => {
                // What nobody reaps is init's to answer for; nothing of it runs.
                let running = |state: char| state != 'Z';
                let all = processes_with(init)?;
                let left = all.iter().filter(|(_, state, _)| running(*state)).count();
                assert_eq!(left, 1, "{all:?}");
            }
        }
        assert_eq!(zombies_of(monitor)?, 0);
        assert_eq!(rig.node.init_pid(&id).await?, init);
    }
    rig.finish().await
}

#[tokio::test]
async fn x6_a_caller_that_goes_away_takes_its_command_along() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("x6").await?;
    let config = container("main", busybox, &["probe", "sleep"]);
    let id = rig.start_in(&pod, &config).await?;
    let init = rig.node.init_pid(&id).await?;
    let call = exec(&rig, &id, "exec sleep 9999", 0);
    let given_up = tokio::time::timeout(Duration::from_millis(500), call).await;
    assert!(given_up.is_err(), "it was to run on: {given_up:?}");
    alone(init).await?;
    rig.finish().await
}

/// The container's directory of the pids controller, on cgroup v1 or v2.
fn pids_directory(init: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let controller = |line: &str| Some(line.split(':').nth(1)?.to_owned());
    let v1 = text
        .lines()
        .find(|line| controller(line).as_deref() == Some("pids"));
    let (line, mount) = match v1 {
        Some(line) => (line, "/sys/fs/cgroup/pids"),
        None => (text.lines().last().context("no cgroup")?, "/sys/fs/cgroup"),
    };
    let path = line.splitn(3, ':').nth(2).context("no path")?;
    Ok(PathBuf::from(format!("{mount}{path}")))
}

#[tokio::test]
async fn x6_at_the_pids_limit_an_exec_fails_at_once() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("x6").await?;
    let script = "for i in 1 2 3 4 5; do sleep 9999 & done; wait";
    let config = container("main", busybox, &["sh", "-c", script]);
    let id = rig.start_in(&pod, &config).await?;
    let init = rig.node.init_pid(&id).await?;
    wait::until("its children", Duration::from_secs(10), async || {
        Ok((processes_with(init)?.len() == 6).then_some(()))
    })
    .await?;
    let limit = pids_directory(init)?.join("pids.max");
    for most in ["6", "7"] {
        fs::write(&limit, most).with_context(|| limit.display().to_string())?;
        let begin = Instant::now();
        let done = exec(&rig, &id, "sleep 9999 & wait", 20).await;
        assert!(begin.elapsed() < Duration::from_secs(5), "{most}: it hung");
        // Where there is room for the shell, its fork fails.
        match done {
            Ok(code) => assert!(most == "7" && code != 0, "{most}: {code}"),
            Err(refused) => assert_ne!(refused.code(), Code::DeadlineExceeded, "{refused:?}"),
        }
    }
    fs::write(&limit, "max")?;
    assert_eq!(exec(&rig, &id, "true", 10).await?, 0);
    rig.finish().await
}
