//! What is remembered of each attached pod: one small file a pod, and the cursors of the pools.
//!
//! Files, not a table of redb: a lease is worth as much as the link and the rules it stands for, and
//! those are gone after a reboot. So a lease need survive the daemon being killed, not the power
//! going: written and renamed without fsync, which costs tens of microseconds instead of a
//! durable commit's 0.2 ms. What a power cut leaves of one belongs to a pod that is not live any
//! more, and is removed with it. The pod CIDR, which outlives pods, is written durably.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::nft::Forward;
use crate::failure::{Doing as _, Failure};
use crate::network::cidr::Cidr;
use crate::network::hostport::{Claim, HostPort};
use crate::network::netns::check_pod_id;

/// The largest file read back: [`crate::network::hostport::MAX_HOST_PORTS`] ports fit four times.
const LARGEST_FILE: u64 = 1 << 20;

/// What a pod holds of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The pod.
    pub(super) pod_id: String,
    /// The name of the pair's end at the bridge.
    pub(super) host_interface: String,
    /// The pod's addresses.
    pub(super) addresses: Vec<Cidr>,
    /// The bridge's address of each family the pod has.
    pub(super) gateways: Vec<Cidr>,
    /// The host ports that lead to it.
    pub(super) host_ports: Vec<HostPort>,
    /// Its rules are gone or going; the link and this lease follow.
    #[serde(default)]
    pub(super) detaching: bool,
}

impl Lease {
    /// The pod's address of the family of `like`.
    fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(Cidr::address)
            .find(|address| address.is_ipv4() == like.is_ipv4())
    }

    fn has(&self, ipv4: bool) -> bool {
        self.addresses
            .iter()
            .any(|address| address.is_ipv4() == ipv4)
    }

    /// The host ports by family.
    pub(super) fn claims(&self) -> Vec<Claim> {
        self.forwards()
            .into_iter()
            .map(|forward| forward.claim)
            .collect()
    }

    /// Where packets to its host ports go.
    pub(super) fn forwards(&self) -> Vec<Forward> {
        let (ipv4, ipv6) = (self.has(true), self.has(false));
        let mut forwards = Vec::new();
        for port in &self.host_ports {
            for claim in port.claims(ipv4, ipv6) {
                if let Some(address) = self.address_like(claim.address) {
                    forwards.push(Forward {
                        claim,
                        to: SocketAddr::new(address, port.container_port),
                        pod_id: self.pod_id.clone(),
                    });
                }
            }
        }
        forwards
    }
}

/// The folder the leases are in.
#[derive(Debug)]
pub(super) struct Leases {
    directory: PathBuf,
    leases: PathBuf,
}

impl Leases {
    /// Opens the folder, making it (0700) if need be.
    pub(super) fn open(directory: &Path) -> Result<Self, Failure> {
        let leases = directory.join("leases");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&leases)
            .doing(format!("make {}", leases.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            leases,
        })
    }

    fn file(&self, pod_id: &str) -> PathBuf {
        self.leases.join(format!("{pod_id}.json"))
    }

    /// Reads all leases. One that cannot be read is removed with a warning: see the head of the file.
    pub(super) fn load(&self) -> Result<Vec<Lease>, Failure> {
        let doing = || format!("list {}", self.leases.display());
        let mut leases = Vec::new();
        for entry in fs::read_dir(&self.leases).doing(doing())? {
            let path = entry.doing(doing())?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let lease = if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                read(&path)
                    .and_then(|text| serde_json::from_str::<Lease>(&text).map_err(io::Error::other))
            } else {
                Err(io::Error::other("a write that did not finish"))
            };
            match lease {
                Ok(lease)
                    if Some(lease.pod_id.as_str()) == name
                        && check_pod_id(&lease.pod_id).is_ok() =>
                {
                    leases.push(lease);
                }
                Ok(_) => remove_broken(&path, "it is another pod's"),
                Err(error) => remove_broken(&path, &error.to_string()),
            }
        }
        Ok(leases)
    }

    /// Writes a lease, in place of the one the pod had.
    pub(super) fn save(&self, lease: &Lease) -> Result<(), Failure> {
        let path = self.file(&lease.pod_id);
        let doing = || format!("write {}", path.display());
        let text = serde_json::to_vec(lease).doing(doing())?;
        replace(&path, &text, false).doing(doing())
    }

    /// Forgets a lease; none is fine.
    pub(super) fn remove(&self, pod_id: &str) -> Result<(), Failure> {
        let path = self.file(pod_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The cursor of each range. Losing them costs only the order in which addresses come round.
    pub(super) fn load_cursors(&self) -> BTreeMap<Cidr, u64> {
        read(&self.directory.join("cursors.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Keeps the cursors.
    pub(super) fn save_cursors(&self, cursors: &BTreeMap<Cidr, u64>) -> Result<(), Failure> {
        let path = self.directory.join("cursors.json");
        let text = serde_json::to_vec(cursors).doing("write the address cursors")?;
        replace(&path, &text, false).doing(format!("write {}", path.display()))
    }

    /// The pod CIDR the kubelet gave last, if it ever did.
    pub(super) fn load_pod_cidr(&self) -> Result<Option<Vec<Cidr>>, Failure> {
        let path = self.directory.join("pod-cidr.json");
        match read(&path) {
            Ok(text) => {
                let doing = format!("parse {}", path.display());
                Ok(Some(serde_json::from_str(&text).doing(doing)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(format!("read {}", path.display())),
        }
    }

    /// Keeps the pod CIDR, durably.
    pub(super) fn save_pod_cidr(&self, ranges: &[Cidr]) -> Result<(), Failure> {
        let path = self.directory.join("pod-cidr.json");
        let text = serde_json::to_vec(ranges).doing("write the pod CIDR")?;
        replace(&path, &text, true).doing(format!("write {}", path.display()))
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(LARGEST_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Writes beside and renames over, so that a reader finds the old or the new, never a part.
fn replace(path: &Path, text: &[u8], durable: bool) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&beside)?;
    file.write_all(text)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    if durable && let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn remove_broken(path: &Path, why: &str) {
    tracing::warn!(path = %path.display(), why, "dropping an unreadable network lease");
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the lease");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::hostport::Protocol;

    fn lease(pod_id: &str, addresses: &[&str], host_ip: Option<&str>) -> Lease {
        Lease {
            pod_id: pod_id.to_owned(),
            host_interface: format!("bh{pod_id}"),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: Vec::new(),
            host_ports: vec![HostPort {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_port: 8080,
                host_ip: host_ip.map(|text| text.parse().unwrap()),
            }],
            detaching: false,
        }
    }

    #[test]
    fn a_host_port_leads_to_the_pods_address_of_its_family() {
        let both = ["10.0.0.2/24", "fd00::2/64"];
        for (addresses, host_ip, targets) in [
            (&both[..], None, vec!["10.0.0.2:80", "[fd00::2]:80"]),
            (&both[..1], None, vec!["10.0.0.2:80"]),
            (&both[..], Some("::1"), vec!["[fd00::2]:80"]),
            (&both[..], Some("0.0.0.0"), vec!["10.0.0.2:80"]),
            (&both[..1], Some("::1"), vec![]),
        ] {
            let found: Vec<String> = lease("a", addresses, host_ip)
                .forwards()
                .iter()
                .map(|forward| forward.to.to_string())
                .collect();
            assert_eq!(found, targets, "{addresses:?} {host_ip:?}");
        }
    }

    #[test]
    fn leases_come_back_and_broken_ones_are_dropped() {
        let directory = std::env::temp_dir().join(format!("bulkhead-lease-{}", std::process::id()));
        let leases = Leases::open(&directory).unwrap();
        let kept = lease("a", &["10.0.0.2/24"], None);
        leases.save(&kept).unwrap();
        leases.save(&lease("b", &["10.0.0.3/24"], None)).unwrap();
        leases.remove("b").unwrap();
        leases.remove("b").unwrap();
        fs::write(leases.file("torn"), b"{\"pod_id\":").unwrap();
        fs::write(leases.leases.join("c.new"), b"").unwrap();
        fs::copy(leases.file("a"), leases.file("other")).unwrap();
        assert_eq!(leases.load().unwrap(), [kept]);
        assert_eq!(fs::read_dir(&leases.leases).unwrap().count(), 1);

        assert_eq!(leases.load_pod_cidr().unwrap(), None);
        let ranges = vec!["10.0.0.0/24".parse().unwrap()];
        leases.save_pod_cidr(&ranges).unwrap();
        assert_eq!(leases.load_pod_cidr().unwrap(), Some(ranges.clone()));
        let cursors = BTreeMap::from([(ranges[0], 7)]);
        leases.save_cursors(&cursors).unwrap();
        assert_eq!(leases.load_cursors(), cursors);
        fs::remove_dir_all(&directory).unwrap();
    }
}
