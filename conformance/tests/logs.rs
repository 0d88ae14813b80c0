//! Container logs: cases O1 and O4.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bulkhead_conformance::node::pods::{container, mount};
use bulkhead_conformance::node::{Log, signal};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use rustix::process::Signal;

#[tokio::test]
async fn o1_the_last_record_is_full_and_the_content_is_whole() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("o1").await?;
    let rows: [(&str, &str, usize, bool); 9] = [
        ("one byte", "78", 1, false),
        ("the split size", "61", 16_384, false),
        ("one more", "61", 16_385, false),
        ("forty thousand", "62", 40_000, false),
        ("carriage returns", "630d0a", 3, false),
        ("zeroes", "0000000a", 2, false),
        ("no text", "ff80fe", 5, false),
        ("nothing", "", 1, false),
        ("a terminal", "64", 3, true),
    ];
    for (row, (name, hex, times, tty)) in rows.into_iter().enumerate() {
        for (stream, end) in [("out", ""), ("err", ""), ("out", "0a")] {
            if tty && stream == "err" {
                continue;
            }
            let word = format!("c{row}-{stream}{end}");
            let script =
                format!("probe write {stream} '{hex}' {times}; probe write {stream} '{end}'");
            let mut config = container(&word, busybox, &["sh", "-c", &script]);
            config.tty = tty;
            let config = bulkhead_conformance::node::pods::fitting(&config, &pod.config);
            let (status, log) = rig.node.run_to_end(&pod.id, &pod.config, &config).await?;
            assert_eq!(status.exit_code, 0, "{name}");

            let mut written: Vec<u8> = bytes(hex).repeat(times);
            written.extend(bytes(end));
            let wanted = if stream == "err" { "stderr" } else { "stdout" };
            let records: Vec<_> = log
                .records
                .iter()
                .filter(|record| record.0 == wanted)
                .collect();
            assert_eq!(
                records.len(),
                log.records.len(),
                "{name}: another stream has records"
            );
            check(name, &records, &written, tty);
        }
    }
    rig.finish().await
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex of the table"))
        .collect()
}

/// The joined records are what was written, without its newlines; an empty F only closes a P.
fn check(name: &str, records: &[&(String, String, Vec<u8>)], written: &[u8], tty: bool) {
    if written.is_empty() {
        assert!(records.is_empty(), "{name}: {records:?}");
        return;
    }
    assert_eq!(
        records.last().map(|record| record.1.as_str()),
        Some("F"),
        "{name}: open end"
    );
    // A terminal turns LF into CR LF (termios(3), ONLCR); the rest is verbatim.
    let joined: Vec<u8> = records
        .iter()
        .flat_map(|record| record.2.iter().copied())
        .collect();
    let without =
        |text: &[u8]| -> Vec<u8> { text.iter().copied().filter(|b| *b != b'\n').collect() };
    let trimmed = match joined.strip_suffix(b"\r") {
        Some(rest) if tty && written.ends_with(b"\n") => rest,
        _ => &joined,
    };
    assert_eq!(trimmed, without(written), "{name}");
    let mut open = false;
    for (_, tag, content) in records {
        let blank_line = content.is_empty()
            && !open
            && (written.starts_with(b"\n") || written.windows(2).any(|two| two == b"\n\n"));
        assert!(
            !content.is_empty() || open || blank_line,
            "{name}: a stray empty record"
        );
        assert!(content.len() <= 16_384, "{name}: {} bytes", content.len());
        open = tag == "P";
    }
}

/// The daemon is stopped, and killed, for thirty seconds each, under ten megabytes a second.
#[tokio::test]
async fn o4_nobody_home_and_the_container_writes_on() -> Result<()> {
    const SECONDS: u64 = 64;
    const RATE: u64 = 10_000;
    let mut rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("o4").await?;
    let volume = rig.node.scratch("beat")?;
    let (seconds, rate) = (SECONDS.to_string(), RATE.to_string());
    let command = ["probe", "heartbeat", "/vol/worst", &seconds, &rate, "7"];
    let mut config = container("main", busybox, &command);
    config.mounts = vec![mount(&volume, "/vol", false)];
    let id = rig.start_in(&pod, &config).await?;
    let path = rig.node.status(&id).await?.log_path;

    signal(rig.node.pid(), Signal::STOP)?;
    let stopped = progress(&path).await?;
    signal(rig.node.pid(), Signal::CONT)?;
    rig.node.kill()?;
    let killed = progress(&path).await?;
    let expected = AWAY.as_secs() * RATE;
    for meanwhile in [stopped, killed] {
        let share = meanwhile * 100 / expected;
        assert!(share > 90, "{share} % of the bytes came meanwhile");
    }
    // It ends while nobody is there.
    let worst = volume.join("worst");
    wait::until("the container's end", Duration::from_secs(30), async || {
        Ok(worst.exists().then_some(()))
    })
    .await?;
    let ended = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    // Longer than the tolerance below: a time taken at the restart would be found out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.node.launch().await?;

    let status = rig.node.status(&id).await?;
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 7);
    let late = u128::try_from(status.finished_at)?.abs_diff(ended);
    assert!(late < 400_000_000, "finished_at is {late} ns off");
    let pause: u64 = fs::read_to_string(worst)?.parse()?;
    assert!(pause < 1000, "one line took {pause} ms");
    assert_eq!(numbered(&path)?, SECONDS * RATE, "lines lost or doubled");
    rig.finish().await
}

/// How long nobody is home.
const AWAY: Duration = Duration::from_secs(30);

/// How many lines of the heartbeat's come while nobody is home, by the log's growth: a line is some
/// thousand bytes and the log's own fields.
async fn progress(path: &str) -> Result<u64> {
    let before = fs::metadata(path)?.len();
    tokio::time::sleep(AWAY).await;
    let line = fs::read(path)?
        .split(|byte| *byte == b'\n')
        .nth(1)
        .map_or(1, <[u8]>::len);
    Ok((fs::metadata(path)?.len() - before) / u64::try_from(line)?)
}

/// How many full lines there are, each beginning with its number; one out of order ends the count.
/// By line, since the file is large.
fn numbered(path: &str) -> Result<u64> {
    let mut next = 0;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let number = next.to_string();
        let mut fields = line.splitn(5, |byte| *byte == b' ').skip(1);
        let is_next = [&b"stdout"[..], b"F", number.as_bytes()]
            .iter()
            .all(|want| fields.next() == Some(want));
        if !is_next {
            break;
        }
        next += 1;
    }
    Ok(next)
}

#[tokio::test]
async fn a_reopened_log_goes_on_in_a_new_file() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("reopen").await?;
    let command = ["sh", "-c", "while :; do echo line; usleep 5000; done"];
    let id = rig
        .start_in(&pod, &container("main", busybox, &command))
        .await?;
    let path = rig.node.status(&id).await?.log_path;
    let old = format!("{path}.1");
    fs::rename(&path, &old)?;
    let request = cri::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    rig.node
        .runtime
        .clone()
        .reopen_container_log(request)
        .await?;
    let closed = fs::metadata(&old)?.len();
    // Time for some twenty lines.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        fs::metadata(&old)?.len(),
        closed,
        "the old file still grows"
    );
    assert!(Log::read(&path)?.stdout().starts_with("line\n"));
    rig.finish().await
}
