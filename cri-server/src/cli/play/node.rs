//! This machine's facts that a manifest's values depend on.

use std::fs;
use std::io::Read as _;

use anyhow::Context as _;
use bulkhead_proto::runtime::v1::DnsConfig;

use super::plan::Node;

/// No sane resolv.conf is larger.
const MAX_BYTES: u64 = 64 << 10;

pub(super) fn probe() -> anyhow::Result<Node> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let meminfo = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let mut resolv = String::new();
    // A node without the file has no DNS to hand on.
    if let Ok(file) = fs::File::open("/etc/resolv.conf") {
        file.take(MAX_BYTES)
            .read_to_string(&mut resolv)
            .context("read /etc/resolv.conf")?;
    }
    Ok(Node {
        name,
        memory_bytes: memory(&meminfo).context("/proc/meminfo has no MemTotal")?,
        resolv: resolv_conf(&resolv),
    })
}

fn memory(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// As resolv.conf(5): the last `search` counts, options add up.
fn resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let mut rest = words.map(str::to_owned);
        match keyword {
            "nameserver" => config.servers.extend(rest.next()),
            "search" => config.searches = rest.collect(),
            "options" => config.options.extend(rest),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(memory("MemTotal:  2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(memory("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn resolv_conf_is_read_as_its_page_says() {
        let config = resolv_conf(
            "# by hand\nsearch old.example\nnameserver 192.0.2.1\nnameserver  fd00::1\n\
             search a.example b.example\noptions ndots:2 rotate\noptions timeout:1\n;x\nsortlist y\n",
        );
        assert_eq!(config.servers, ["192.0.2.1", "fd00::1"]);
        assert_eq!(config.searches, ["a.example", "b.example"]);
        assert_eq!(config.options, ["ndots:2", "rotate", "timeout:1"]);
    }
}
