//! Times that make sense: case T4.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::node::{Options, monitor_of, signal};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use rustix::process::Signal;

const HOUR: i64 = 3600;
/// 2020 in nanoseconds since the epoch: seconds or milliseconds would be far below.
const YEAR_2020: i64 = 1_577_836_800_000_000_000;

fn times(status: &cri::ContainerStatus) -> (i64, i64, i64) {
    (status.created_at, status.started_at, status.finished_at)
}

/// created ≤ started ≤ finished, where a time that has not come is zero.
fn assert_ordered(status: &cri::ContainerStatus) {
    let (created, started, finished) = times(status);
    assert!(created > YEAR_2020, "{status:?}");
    assert!(started == 0 || started >= created, "{status:?}");
    assert!(
        finished == 0 || finished >= started.max(created),
        "{status:?}"
    );
}

#[tokio::test]
async fn t4_times_are_ordered_zero_when_unset_and_survive_a_restart() -> Result<()> {
    let mut rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("t4").await?;
    let id = rig
        .create_in(&pod, &container("main", busybox, &["sleep", "1000"]))
        .await?;
    let created = rig.node.status(&id).await?;
    assert_ordered(&created);
    assert_eq!((created.started_at, created.finished_at), (0, 0));
    rig.node.start_container(&id).await?;
    let running = rig.node.status(&id).await?;
    assert_ordered(&running);
    assert!(
        running.started_at > 0 && running.finished_at == 0,
        "{running:?}"
    );

    let broken = rig
        .create_in(&pod, &container("broken", busybox, &["/absent"]))
        .await?;
    assert!(rig.node.start_container(&broken).await.is_err());
    let mut ids = vec![broken];
    let (one, two, three) = tokio::try_join!(
        hundred(&rig, "one", busybox),
        hundred(&rig, "two", busybox),
        hundred(&rig, "three", busybox),
    )?;
    ids.extend([one, two, three].into_iter().flatten());
    let mut before = Vec::new();
    for short in &ids {
        let status = rig.node.wait_exit(short).await?;
        assert_ordered(&status);
        assert!(status.finished_at > 0, "{status:?}");
        before.push(times(&status));
    }
    rig.node.kill()?;
    rig.node.launch().await?;
    for (short, before) in ids.iter().zip(before) {
        assert_eq!(times(&rig.node.status(short).await?), before);
    }
    assert_eq!(rig.node.status(&id).await?.started_at, running.started_at);
    rig.finish().await
}

/// A hundred containers of one pod that run `true`.
async fn hundred(rig: &Rig, pod: &str, image: &str) -> Result<Vec<String>> {
    let pod = rig.pod(pod).await?;
    let mut ids = Vec::new();
    for row in 0..100 {
        let config = container(&format!("short{row}"), image, &["true"]);
        ids.push(rig.start_in(&pod, &config).await?);
    }
    Ok(ids)
}

/// The machine's clock is everybody's: the daemon's alone is moved. The monitor's part, a clock set
/// back between start and exit, has tests of its own with given times (`monitor::state`, `records`).
#[tokio::test]
async fn t4_a_clock_set_back_an_hour_leaves_the_order_and_the_times_given_before() -> Result<()> {
    let mut rig = Rig::start_with(Options {
        movable_clock: true,
        ..Default::default()
    })
    .await?;
    let busybox = rig.busybox().await?;
    rig.node.move_clock(HOUR)?;
    let pod = rig.pod("back").await?;
    let unstarted = container("unstarted", busybox, &["true"]);
    let unstarted = rig.create_in(&pod, &unstarted).await?;
    let config = container("running", busybox, &["sleep", "1000"]);
    let running = rig.start_in(&pod, &config).await?;
    let broken = container("broken", busybox, &["/absent"]);
    let broken = rig.create_in(&pod, &broken).await?;
    let before = rig.node.status(&running).await?;
    assert_ordered(&before);

    rig.node.move_clock(0)?;
    rig.node.start_container(&unstarted).await?;
    assert!(rig.node.start_container(&broken).await.is_err());
    rig.node.stop_container(&running, 0).await?;
    let mut ended = Vec::new();
    for id in [&unstarted, &broken, &running] {
        let status = rig.node.wait_exit(id).await?;
        assert_ordered(&status);
        ended.push(times(&status));
    }
    let after = rig.node.status(&running).await?;
    assert_eq!(
        (after.created_at, after.started_at),
        (before.created_at, before.started_at)
    );

    rig.node.move_clock(-HOUR)?;
    rig.node.kill()?;
    rig.node.launch().await?;
    for (id, ended) in [&unstarted, &broken, &running].into_iter().zip(ended) {
        assert_eq!(times(&rig.node.status(id).await?), ended);
    }
    rig.finish().await
}

/// The file of `container`'s exit, once it is there.
async fn exit_record(rig: &Rig, pod: &Pod, container: &str) -> Result<std::path::PathBuf> {
    let folder = rig.node.state().join("pods").join(&pod.id).join("exits");
    let path = folder.join(format!("{container}.json"));
    wait::until("the exit record", Duration::from_secs(20), async || {
        Ok(path.exists().then(|| path.clone()))
    })
    .await
}

#[tokio::test]
async fn t4_a_truncated_state_file_makes_an_unknown_end_and_no_birth_in_1970() -> Result<()> {
    let mut rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    for (name, length, monitor_lives) in [
        ("remembered", 0, true),
        ("empty", 0, false),
        ("half", 20, false),
    ] {
        let pod = rig.pod(name).await?;
        let script = "while [ ! -e /go ]; do usleep 10000; done; exit 7";
        let config = container("main", busybox, &["sh", "-c", script]);
        let id = rig.start_in(&pod, &config).await?;
        let other = container("other", busybox, &["sleep", "1000"]);
        let other = rig.start_in(&pod, &other).await?;
        let monitor = monitor_of(rig.node.init_pid(&id).await?)?;
        let go = format!("/proc/{}/root/go", rig.node.init_pid(&id).await?);
        let before = rig.node.status(&id).await?;

        rig.node.kill()?;
        fs::write(&go, "").context("tell it to end")?;
        let record = exit_record(&rig, &pod, &id).await?;
        if !monitor_lives {
            signal(monitor, Signal::KILL)?;
        }
        OpenOptions::new()
            .write(true)
            .open(&record)?
            .set_len(length)?;
        rig.node.launch().await?;

        let status = rig.node.wait_exit(&id).await?;
        assert_ordered(&status);
        assert_eq!(
            (status.created_at, status.started_at),
            (before.created_at, before.started_at),
            "{name}"
        );
        let end = (status.exit_code, status.reason.as_str());
        match monitor_lives {
            true => assert_eq!(end, (7, "Error"), "{name}"),
            false => {
                assert_eq!(end, (255, "Unknown"), "{name}");
                assert!(status.message.contains("exit record"), "{status:?}");
                assert_eq!(rig.node.wait_exit(&other).await?.reason, "MonitorDied");
            }
        }
        rig.node.stop_pod(&pod.id).await?;
        rig.node.remove_pod(&pod.id).await?;
    }
    rig.finish().await
}
