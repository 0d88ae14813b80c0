//! Files in, configuration or refusal out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::keys::KEYS;
use super::*;

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn with(name: &str, files: &[(&str, &str)]) -> Self {
        let dir =
            std::env::temp_dir().join(format!("bulkhead-config-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("config.d")).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        Self(dir)
    }

    fn load(&self) -> Result<Loaded, Failure> {
        Loaded::read(&self.0.join("config.toml"))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn full() -> Config {
    Config {
        monitor: schema::Monitor {
            path: Some(PathBuf::from("/usr/libexec/bulkhead-monitor")),
        },
        telemetry: schema::Telemetry {
            otlp_endpoint: Some("http://127.0.0.1:4317".to_owned()),
        },
        network: Network {
            mtu: Some(1400),
            ..Network::default()
        },
        streaming: Streaming {
            tls_certificate: Some(PathBuf::from("/etc/bulkhead/tls.crt")),
            tls_key: Some(PathBuf::from("/etc/bulkhead/tls.key")),
            ..Streaming::default()
        },
        ..Config::default()
    }
}

#[test]
fn every_field_has_a_documented_key_and_every_key_a_field() {
    let mut fields = BTreeSet::new();
    for (name, value) in toml::Table::try_from(full()).unwrap() {
        match value {
            toml::Value::Table(inner) => {
                fields.extend(inner.keys().map(|key| format!("{name}.{key}")));
            }
            _ => {
                fields.insert(name);
            }
        }
    }
    let keys: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(fields, keys);
}

#[test]
fn without_files_everything_has_its_default() {
    let dir = Dir::with("none", &[]);
    assert_eq!(dir.load().unwrap().config, Config::default());
}

#[test]
fn drop_ins_are_merged_by_key_in_the_order_of_their_names() {
    let dir = Dir::with(
        "merge",
        &[
            (
                "config.toml",
                "root = \"/a\"\n[socket]\nmode = \"0600\"\ngroup = 7\n",
            ),
            ("config.d/20-b.toml", "[socket]\ngroup = 9\n"),
            ("config.d/10-a.toml", "[socket]\ngroup = 8\nowner = 5\n"),
            ("config.d/.hidden.toml", "nonsense = 1\n"),
            ("config.d/notes.txt", "nonsense = 1\n"),
        ],
    );
    let loaded = dir.load().unwrap();
    let socket = &loaded.config.socket;
    assert_eq!(loaded.config.root, PathBuf::from("/a"));
    assert_eq!(
        (socket.mode, socket.owner, socket.group),
        (Mode(0o600), 5, 9)
    );
    let place = loaded.origins.get("socket.group").unwrap().to_string();
    assert!(place.ends_with("config.d/20-b.toml:2"), "{place}");
}

#[test]
fn what_print_shows_sets_the_same_again() {
    let loaded = Loaded {
        config: full(),
        origins: Origins::default(),
    };
    let dir = Dir::with("print", &[("config.toml", &loaded.print().unwrap())]);
    assert_eq!(dir.load().unwrap().config, full());
}

#[test]
fn what_is_wrong_is_refused_with_file_line_and_way_out() {
    for (case, text, wanted) in [
        (
            "an unknown key is named with its line and the nearest",
            "root = \"/a\"\n\n[socket]\npth = \"/x\"\n",
            "config.toml:4: unknown key socket.pth; is socket.path meant?",
        ),
        (
            "an unknown table as well",
            "[netwrok]\nbridge = \"b\"\n",
            "config.toml:1: unknown key netwrok; is network meant?",
        ),
        (
            "a dotted unknown key as well",
            "log.colour = true\n",
            "config.toml:1: unknown key log.colour; `bulkhead config print` shows all",
        ),
        (
            "a streaming address no client can be sent to",
            "streaming.address = \"0.0.0.0:10010\"\n",
            "config.toml:1: streaming.address is 0.0.0.0:10010: clients are sent to it",
        ),
        (
            "streams in the clear off loopback",
            "[streaming]\naddress = \"192.0.2.1:0\"\n",
            "config.toml:2: streaming.address is 192.0.2.1:0: off loopback",
        ),
        (
            "half an identity",
            "streaming.tls-key = \"/a.key\"\n",
            "config.toml:1: streaming.tls-key is set without streaming.tls-certificate",
        ),
        (
            "a wrong type",
            "\n[images]\nconcurrent-layers = \"four\"\n",
            "config.toml:3: invalid type: string \"four\"",
        ),
        (
            "a table written as a value",
            "network = 3\n",
            "config.toml:1: invalid type",
        ),
        (
            "broken syntax",
            "root = \"/a\"\nstate =\n",
            "config.toml:2: ",
        ),
        (
            "a key given twice",
            "root = \"/a\"\nroot = \"/b\"\n",
            "config.toml:2: duplicate key",
        ),
        (
            "an unknown choice",
            "[log]\nformat = \"xml\"\n",
            "config.toml:2: unknown variant `xml`",
        ),
        (
            "a mode that is none",
            "socket.mode = \"rw\"\n",
            "config.toml:1: \"rw\" is no file mode",
        ),
        (
            "a relative path",
            "root = \"a\"\n",
            "config.toml:1: root is \"a\": an absolute path",
        ),
        (
            "a bridge name the kernel refuses",
            "network.bridge = \"a-name-that-is-too-long\"\n",
            "config.toml:1: network.bridge is",
        ),
        (
            "host bits in a range",
            "network.pod-cidrs = [\"10.87.0.1/16\"]\n",
            "config.toml:1: \"10.87.0.1/16\" is no address range: bits are set below",
        ),
        (
            "two ranges of one family",
            "network.pod-cidrs = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n",
            "config.toml:1: network.pod-cidrs has to hold",
        ),
        (
            "limits the wrong way round",
            "[rlimits]\nnofile-soft = 2048\nnofile-hard = 1024\n",
            "config.toml:2: rlimits.nofile-soft is 2048, above",
        ),
        (
            "a number out of range",
            "stats.period-seconds = 0\n",
            "stats.period-seconds is 0",
        ),
        (
            "no handler",
            "handlers = []\n",
            "config.toml:1: handlers is empty",
        ),
        (
            "a handler twice",
            "handlers = [\"a\", \"a\"]\n",
            "holds \"a\" twice",
        ),
        (
            "a log level that is none",
            "log.level = \"a=b=c\"\n",
            "config.toml:1: log.level",
        ),
        (
            "an endpoint without scheme",
            "telemetry.otlp-endpoint = \"collector:4317/x\"\n",
            "config.toml:1: telemetry.otlp-endpoint",
        ),
        (
            "a cgroup parent that climbs",
            "cgroup.parent = \"/a/../b\"\n",
            "cgroup.parent is",
        ),
        (
            "a cgroup parent that isn't a slice with the driver that needs one",
            "cgroup.driver = \"systemd\"\n",
            "bulkhead-pods.slice",
        ),
    ] {
        let dir = Dir::with("wrong", &[("config.toml", text)]);
        let failure = dir.load().err().map(|f| f.message().to_owned());
        let message = failure.unwrap_or_else(|| panic!("{case}: accepted"));
        assert!(message.contains(wanted), "{case}: {message}");
    }
}

#[test]
fn a_range_has_no_bits_below_its_prefix() {
    for (text, good) in [
        ("10.87.0.0/16", true),
        ("10.0.0.0/8", true),
        ("192.0.2.1/32", true),
        ("fd00::/64", true),
        ("fd00::1/128", true),
        ("fd00::1/64", false),
        ("10.0.0.0/0", false),
        ("10.0.0.0/33", false),
        ("10.0.0.0", false),
        ("x/8", false),
    ] {
        assert_eq!(Cidr::try_from(text.to_owned()).is_ok(), good, "{text}");
    }
}
