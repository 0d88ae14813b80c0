//! Every key with what it means to an operator: the comments of `bulkhead config print`, and what a
//! misspelt key is compared with. Pure data.

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Dotted path.
    pub(super) path: &'static str,
    /// One line for people.
    pub(super) doc: &'static str,
}

const fn key(path: &'static str, doc: &'static str) -> Key {
    Key { path, doc }
}

/// All keys, in the order of a printed configuration.
pub(super) const KEYS: &[Key] = &[
    key(
        "root",
        "Directory for what survives a reboot: images, writable layers, records.",
    ),
    key(
        "state",
        "Directory for what does not: monitors' sockets, pods' files. A tmpfs is best.",
    ),
    key(
        "handlers",
        "Names for RuntimeClass; the first is the default one.",
    ),
    key(
        "socket.path",
        "Unix socket of the CRI. One inherited through LISTEN_FDS goes before it.",
    ),
    key("socket.mode", "Its mode, in octal digits."),
    key("socket.owner", "Its owner, a numeric user id."),
    key("socket.group", "Its group, a numeric group id."),
    key(
        "monitor.path",
        "The bulkhead-monitor executable. Unset: the one beside bulkhead.",
    ),
    key(
        "log.level",
        "error, warn, info, debug or trace; or directives such as info,bulkhead=debug.",
    ),
    key("log.format", "human or json."),
    key(
        "telemetry.otlp-endpoint",
        "Where traces go, such as http://127.0.0.1:4317. Unset: nowhere.",
    ),
    key(
        "network.mode",
        "embedded, or cni: not served yet, the node then reports its network as not ready.",
    ),
    key(
        "network.bridge",
        "Bridge of the embedded network, at most 15 bytes.",
    ),
    key(
        "network.pod-cidrs",
        "Ranges of pod addresses until the control plane sets others; IPv4, IPv6 or one of each.",
    ),
    key(
        "network.unmasqueraded-cidrs",
        "Destinations that see pods' own addresses, such as routed pod ranges of other nodes.",
    ),
    key(
        "network.mtu",
        "MTU of pods' interfaces. Unset: that of the node's default route.",
    ),
    key(
        "network.host-ports",
        "Serve host ports. False: pods that ask for one are refused.",
    ),
    key(
        "images.certs-d",
        "Directories with a hosts.toml per registry; the first that has one is used.",
    ),
    key(
        "images.token-hosts",
        "Hosts that may be given a registry's credentials for a token, beside the registry itself.",
    ),
    key(
        "images.max-layer-bytes",
        "Most bytes one layer may unpack to.",
    ),
    key(
        "images.max-layer-entries",
        "Most files and directories one layer may hold.",
    ),
    key(
        "images.concurrent-layers",
        "Layers fetched and unpacked at once, over all pulls.",
    ),
    key(
        "images.progress-timeout-seconds",
        "A pull that receives nothing for so long is given up.",
    ),
    key(
        "seccomp.when-unset",
        "For containers whose request has no seccomp field: unconfined (CRI's meaning) or runtime-default.",
    ),
    key(
        "capabilities.default",
        "restricted (nine capabilities) or conventional (fourteen).",
    ),
    key(
        "cdi.directories",
        "Directories with vendors' device files (CDI); a later one counts before an earlier one.",
    ),
    key(
        "cgroup.driver",
        "cgroupfs, or systemd: a scope per pod, in the slice the kubelet names. Needs cgroup v2.",
    ),
    key(
        "cgroup.parent",
        "Cgroup of pods whose request names none; with the systemd driver a slice.",
    ),
    key(
        "user-namespaces.first-id",
        "First user and group id of the node that pods' user namespaces may be given.",
    ),
    key(
        "user-namespaces.ids",
        "How many ids from there on; a pod that is given others, or a live pod's, is refused.",
    ),
    key(
        "rlimits.nofile-soft",
        "Open files a container's process starts with, whatever the daemon's own limit.",
    ),
    key("rlimits.nofile-hard", "Open files it may raise that to."),
    key(
        "stats.period-seconds",
        "Time between two background samples of usage.",
    ),
    key(
        "streaming.address",
        "Where exec, attach and port-forward are served; port 0 is any free one.",
    ),
    key(
        "streaming.tls-certificate",
        "PEM file of the server's certificates, read anew when it changes. Needed off loopback.",
    ),
    key("streaming.tls-key", "PEM file of its key."),
    key(
        "streaming.idle-seconds",
        "A stream over which nothing goes for so long is ended.",
    ),
    key(
        "streaming.creation-seconds",
        "How long a client may take to open its streams.",
    ),
    key(
        "limits.message-bytes",
        "Largest gRPC message sent or received. Clients accept 16 MiB.",
    ),
];

/// The key's documentation.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether `path` is a table that holds keys.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .split_once('.')
            .is_some_and(|(table, _)| table == path)
    })
}

/// The known key nearest to a misspelt one, if any is near enough to be meant. The right key in
/// the wrong table is.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let last = |path: &'static str| path.rsplit('.').next();
    let given = path.rsplit('.').next().map(|name| name.replace('_', "-"));
    let tables = KEYS
        .iter()
        .filter_map(|key| Some(key.path.split_once('.')?.0));
    crate::nearest::nearest(path, KEYS.iter().map(|key| key.path).chain(tables)).or_else(|| {
        let mut moved = KEYS.iter().filter(|key| last(key.path) == given.as_deref());
        moved.next().map(|key| key.path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_the_one_meant() {
        for (given, meant) in [
            ("rot", Some("root")),
            ("socket.pth", Some("socket.path")),
            ("images.certs_d", Some("images.certs-d")),
            ("bridge", Some("network.bridge")),
            ("log.when-unset", Some("seccomp.when-unset")),
            ("netwrok", Some("network")),
            ("zebra", None),
        ] {
            assert_eq!(nearest(given), meant, "for {given}");
        }
    }
}
