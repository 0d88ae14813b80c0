//! The stage: a node with an uplink to an outside, pods, and ways to talk between them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bulkhead_cri_server::failure::Failure;
use bulkhead_cri_server::network::{
    AttachRequest, Attachment, HostPort, Network, NetworkSettings, Protocol,
};
use nix::sched::{CloneFlags, setns, unshare};

/// How long anything on this machine may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// The node's addresses on the uplink, and the outside's.
pub(crate) const NODE4: &str = "192.0.2.1";
pub(crate) const NODE6: &str = "2001:db8::1";
pub(crate) const OUTSIDE4: &str = "192.0.2.2";
pub(crate) const OUTSIDE6: &str = "2001:db8::2";

/// A namespace of its own, by descriptor.
pub(crate) struct Namespace(pub(crate) OwnedFd);

impl Namespace {
    pub(crate) fn new() -> Self {
        Self(
            std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                current()
            })
            .join()
            .unwrap(),
        )
    }

    /// Runs `work` on a thread in this namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// A path `ip` finds the namespace by.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn current() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net")
        .unwrap()
        .into()
}

/// A pod: its namespace and how it is connected.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) namespace: Namespace,
    pub(crate) attachment: Attachment,
}

impl Pod {
    pub(crate) fn v4(&self) -> IpAddr {
        self.address(true)
    }

    pub(crate) fn v6(&self) -> IpAddr {
        self.address(false)
    }

    fn address(&self, ipv4: bool) -> IpAddr {
        let addresses = &self.attachment.addresses;
        addresses
            .iter()
            .map(|cidr| cidr.address())
            .find(|a| a.is_ipv4() == ipv4)
            .unwrap()
    }
}

/// The node, in whose namespace the test's own thread is.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) settings: NetworkSettings,
    pub(crate) runtime: tokio::runtime::Runtime,
    directory: PathBuf,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs a test on a node of its own; says so when it cannot.
pub(crate) fn on_node(test: impl FnOnce(&Node) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root, for network namespaces");
        return;
    }
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let node = Node::build();
                test(&node);
                std::fs::remove_dir_all(&node.directory).unwrap();
            })
            .join()
            .unwrap();
    });
}

impl Node {
    fn build() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("bulkhead-net-{}-{count}", std::process::id()));
        let mut settings = NetworkSettings::new(directory.join("network"));
        settings.pod_cidr = ["10.88.0.0/16", "fd00:10:88::/64"]
            .map(|range| range.parse().unwrap())
            .to_vec();
        let node = Self {
            namespace: Namespace(current()),
            outside: Namespace::new(),
            settings,
            // Its blocking threads start from this thread, so they are on the node too.
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            directory,
        };
        std::fs::create_dir_all(&node.directory).unwrap();
        ip("link set lo up");
        let outside = node.outside.path();
        ip(&format!(
            "link add up0 type veth peer name up1 netns {outside}"
        ));
        ip("link set up0 up");
        ip(&format!("addr add {NODE4}/24 dev up0"));
        ip(&format!("addr add {NODE6}/64 dev up0 nodad"));
        node.outside.run(|| {
            ip("link set lo up");
            ip("link set up1 up");
            ip(&format!("addr add {OUTSIDE4}/24 dev up1"));
            ip(&format!("addr add {OUTSIDE6}/64 dev up1 nodad"));
        });
        node
    }

    pub(crate) fn open(&self) -> Network {
        Network::open(self.settings.clone()).unwrap()
    }

    pub(crate) fn try_attach(
        &self,
        network: &Network,
        id: &str,
        host_ports: &[HostPort],
    ) -> Result<Pod, Failure> {
        let namespace = Namespace::new();
        let request = AttachRequest {
            pod_id: id.to_owned(),
            netns: namespace.0.try_clone().unwrap(),
            host_ports: host_ports.to_vec(),
        };
        let attachment = self.runtime.block_on(network.attach(request))?;
        Ok(Pod {
            id: id.to_owned(),
            namespace,
            attachment,
        })
    }

    pub(crate) fn attach(&self, network: &Network, id: &str, host_ports: &[HostPort]) -> Pod {
        self.try_attach(network, id, host_ports).unwrap()
    }

    pub(crate) fn detach(&self, network: &Network, id: &str) {
        self.runtime.block_on(network.detach(id)).unwrap();
    }

    pub(crate) fn settle(&self, network: &Network) {
        self.runtime.block_on(network.settle()).unwrap();
    }

    pub(crate) fn leases(&self) -> usize {
        std::fs::read_dir(self.settings.state_dir.join("leases"))
            .unwrap()
            .count()
    }

    /// All that a test could leave behind on the node, as text.
    pub(crate) fn picture(&self) -> String {
        // Whether the bridge is up follows its ports.
        let links = output("ip", &["-br", "link"]);
        let links: Vec<&str> = links.lines().filter_map(|l| l.split(' ').next()).collect();
        let addresses = output("ip", &["-br", "addr", "show", "scope", "global"]);
        format!(
            "{}\n{}\n{}\n{}",
            links.join(" "),
            addresses
                .replace("UP", "")
                .replace("DOWN", "")
                .replace(' ', ""),
            output("nft", &["list", "ruleset"]),
            std::fs::read_to_string("/proc/sys/net/ipv4/conf/bulkhead0/route_localnet")
                .unwrap_or_default(),
        )
    }
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(command: &str) {
    output("ip", &command.split(' ').collect::<Vec<_>>());
}

pub(crate) fn write_sysctl(path: &str, value: &str) {
    std::fs::write(Path::new("/proc/sys/net").join(path), value).unwrap();
}

pub(crate) fn tcp(host_ip: Option<&str>, host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol: Protocol::Tcp,
        container_port,
        host_port,
        host_ip: host_ip.map(|text| text.parse().unwrap()),
    }
}

pub(crate) fn ip_of(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Serves TCP on both families at `port` in a namespace until dropped; each client is told the
/// address it comes from, after the server's name.
pub(crate) struct Server {
    port: u16,
    inside: Namespace,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(namespace: &Namespace, name: &str, port: u16) -> Self {
        Self::start_at(namespace, name, SocketAddr::new(ip_of("::"), port))
    }

    pub(crate) fn start_at(namespace: &Namespace, name: &str, address: SocketAddr) -> Self {
        let inside = Namespace(namespace.0.try_clone().unwrap());
        let listener = inside.run(|| TcpListener::bind(address).unwrap());
        let name = name.to_owned();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let mut word = [0];
                // A client that gave up has nothing to be told.
                if stream.read(&mut word).is_ok() {
                    if word == *b"Q" {
                        return;
                    }
                    drop(stream.write_all(format!("{name} {peer}").as_bytes()));
                }
            }
        });
        Self {
            port: address.port(),
            inside,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let port = self.port;
        let stopped = self.inside.run(|| {
            ["127.0.0.1", "::1"].iter().any(|address| {
                TcpStream::connect((*address, port))
                    .and_then(|mut stream| stream.write_all(b"Q"))
                    .is_ok()
            })
        });
        if stopped && let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Asks a server from the calling thread's namespace: what it answered, if it did.
pub(crate) fn ask(address: IpAddr, port: u16) -> Option<String> {
    ask_within(address, port, DEADLINE)
}

/// Nobody answers.
pub(crate) fn silent(address: IpAddr, port: u16) -> bool {
    ask_within(address, port, SILENCE).is_none()
}

fn ask_within(address: IpAddr, port: u16, deadline: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), deadline).ok()?;
    stream.set_read_timeout(Some(deadline)).unwrap();
    stream.write_all(b"?").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// One datagram there and back, from the calling thread's namespace to a socket in a pod.
pub(crate) fn udp_round_trip(server: &UdpSocket, address: IpAddr, port: u16) -> Option<SocketAddr> {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let client = UdpSocket::bind(any).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    client.connect((address, port)).unwrap();
    client.send(b"ping").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).ok()?;
    server.send_to(&buffer[..length], from).unwrap();
    client.recv(&mut buffer).ok().map(|_| from)
}
