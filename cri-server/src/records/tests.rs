//! What an edit promises: all or nothing, durable unless said otherwise.

use bulkhead_proto::runtime::v1::{PodSandboxConfig, PodSandboxMetadata};
use bulkhead_runtime::monitor::wire::PodPaths;

use super::*;

fn pod(id: &str) -> PodRecord {
    PodRecord {
        id: id.to_owned(),
        config: Stored(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: id.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        runtime_handler: String::new(),
        state: PodState::Creating,
        created_at: 1,
        boot_id: "boot".to_owned(),
        cgroup: format!("/pods/{id}"),
        monitor: None,
        paths: PodPaths::default(),
        netns: None,
        network: None,
        torn_down: false,
        resources: None,
        overhead: None,
    }
}

fn set_state(id: &str, state: PodState) -> impl FnOnce(&mut Draft) -> Result<(), Failure> + use<> {
    let id = id.to_owned();
    move |draft| {
        draft.change_pod(&id, |pod| {
            pod.state = state;
            Ok(())
        })
    }
}

/// The records as a daemon finds them that starts after this one was killed.
fn after_a_kill(file: &Path) -> Arc<Snapshot> {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.redb");
    std::fs::copy(file, &copy).unwrap();
    Records::open(&copy).unwrap().snapshot()
}

#[tokio::test]
async fn what_an_edit_put_is_there_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records.redb");
    let records = Records::open(&file).unwrap();
    let put = records.edit(|draft| {
        draft.put_pod(pod("a"));
        Ok(())
    });
    put.await.unwrap();
    let found = after_a_kill(&file);
    assert_eq!(
        found.pod("a").map(|found| (**found).clone()),
        Some(pod("a"))
    );
}

#[tokio::test]
async fn an_edit_that_fails_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(&folder.path().join("records.redb")).unwrap();
    let refused = records.edit(|draft| -> Result<(), Failure> {
        draft.put_pod(pod("a"));
        Err(Failure::precondition("no"))
    });
    assert_eq!(refused.await.unwrap_err().class(), Class::Precondition);
    assert!(records.snapshot().pod("a").is_none());
}

#[tokio::test]
async fn an_edit_in_memory_is_seen_at_once_and_written_with_the_next_durable_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records.redb");
    let records = Records::open(&file).unwrap();
    let put = records.edit(|draft| {
        draft.put_pod(pod("a"));
        Ok(())
    });
    put.await.unwrap();
    records
        .edit_in_memory(|draft| {
            draft.change_pod("a", |pod| {
                pod.netns = Some("/run/netns/a".into());
                Ok(())
            })
        })
        .await
        .unwrap();
    let seen = records.snapshot();
    assert!(seen.pod("a").unwrap().netns.is_some());
    assert!(after_a_kill(&file).pod("a").unwrap().netns.is_none());
    let made = records.edit(set_state("a", PodState::Ready));
    made.await.unwrap();
    let found = after_a_kill(&file);
    let found = found.pod("a").unwrap();
    assert_eq!(found.state, PodState::Ready);
    assert!(found.netns.is_some());
}

#[tokio::test]
async fn edits_run_one_after_another_whatever_is_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(&folder.path().join("records.redb")).unwrap();
    let claim = || {
        records.edit_in_memory(|draft| {
            let free = draft.state().pod("a").is_none();
            draft.put_pod(pod("a"));
            Ok(free)
        })
    };
    let claims = futures_util::future::join_all((0..100).map(|_| claim()));
    let winners = claims
        .await
        .into_iter()
        .filter(|won| *won.as_ref().unwrap())
        .count();
    assert_eq!(winners, 1);
}
