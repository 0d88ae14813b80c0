//! The records on disk: one redb file, JSON values, a format version.
//!
//! Tables: `pods`, `containers` (id → JSON), `specs` (container id → OCI spec as JSON, read only
//! when asked for), `meta` (`format` → version). A record that can't be read is reported and left
//! out, never made up (case T4).

use std::fmt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;

use super::{ContainerRecord, PodRecord, Snapshot};
use crate::failure::{Doing, Failure};

const PODS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pods");
const CONTAINERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("containers");
const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The format this build writes. A newer one is refused rather than misread (threat P3).
const FORMAT: u64 = 1;

/// One change of an edit, in the order made.
#[derive(Clone, Debug)]
pub(super) enum Change {
    PutPod(Arc<PodRecord>),
    PutContainer(Arc<ContainerRecord>),
    PutSpec(String, Vec<u8>),
    RemovePod(String),
    RemoveContainer(String),
}

/// The open file.
pub(super) struct Store {
    database: Database,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn open(file: &Path) -> Result<Self, Failure> {
        let doing = || format!("open the records {}", file.display());
        // Created by us first, so that the mode holds whatever the umask (threat O1).
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(file)
            .and_then(|opened| opened.set_permissions(std::fs::Permissions::from_mode(0o600)))
            .doing(doing())?;
        let database = Database::builder()
            // Everything but the specs is mirrored in memory; the default cache is 1 GiB.
            .set_cache_size(4 << 20)
            .create(file)
            .doing(doing())?;
        let store = Self { database };
        store
            .check_format()
            .map_err(|failure| failure.context(doing()))?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), Failure> {
        let transaction = self.database.begin_write().doing("begin")?;
        {
            let mut meta = transaction.open_table(META).doing("open table meta")?;
            let found = meta
                .get("format")
                .doing("read format")?
                .map(|value| value.value());
            match found {
                Some(format) if format > FORMAT => {
                    return Err(Failure::precondition(format!(
                        "written by a newer version (format {format}, this build knows {FORMAT}); \
                         run that version, or drain the node and remove the file"
                    )));
                }
                _ => meta.insert("format", FORMAT).doing("write format")?,
            };
            transaction.open_table(PODS).doing("open table pods")?;
            transaction
                .open_table(CONTAINERS)
                .doing("open table containers")?;
            transaction.open_table(SPECS).doing("open table specs")?;
        }
        transaction.commit().doing("commit")
    }

    pub(super) fn load(&self) -> Result<Snapshot, Failure> {
        let transaction = self.database.begin_read().doing("read the records")?;
        let mut snapshot = Snapshot::default();
        let pods = transaction.open_table(PODS).doing("open table pods")?;
        for entry in pods.iter().doing("read pods")? {
            let (id, value) = entry.doing("read pods")?;
            if let Some(record) = read::<PodRecord>("pod", id.value(), value.value()) {
                snapshot.insert_pod(record);
            }
        }
        let containers = transaction
            .open_table(CONTAINERS)
            .doing("open table containers")?;
        for entry in containers.iter().doing("read containers")? {
            let (id, value) = entry.doing("read containers")?;
            if let Some(record) = read::<ContainerRecord>("container", id.value(), value.value()) {
                snapshot.insert_container(record);
            }
        }
        Ok(snapshot)
    }

    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), Failure> {
        let mut transaction = self
            .database
            .begin_write()
            .doing("begin a change of the records")?;
        // After an unclean end an ordinary open walks the whole file.
        transaction.set_quick_repair(true);
        {
            let mut pods = transaction.open_table(PODS).doing("open table pods")?;
            let mut containers = transaction
                .open_table(CONTAINERS)
                .doing("open table containers")?;
            let mut specs = transaction.open_table(SPECS).doing("open table specs")?;
            for change in changes {
                match change {
                    Change::PutPod(record) => {
                        let value = serde_json::to_vec(&**record).doing("encode a pod")?;
                        pods.insert(record.id.as_str(), value.as_slice())
                            .doing("write a pod")?;
                    }
                    Change::PutContainer(record) => {
                        let value = serde_json::to_vec(&**record).doing("encode a container")?;
                        containers
                            .insert(record.id.as_str(), value.as_slice())
                            .doing("write a container")?;
                    }
                    Change::PutSpec(id, spec) => {
                        specs
                            .insert(id.as_str(), spec.as_slice())
                            .doing("write a spec")?;
                    }
                    Change::RemovePod(id) => {
                        pods.remove(id.as_str()).doing("remove a pod")?;
                    }
                    Change::RemoveContainer(id) => {
                        containers.remove(id.as_str()).doing("remove a container")?;
                        specs.remove(id.as_str()).doing("remove a spec")?;
                    }
                }
            }
        }
        transaction.commit().doing("commit a change of the records")
    }

    pub(super) fn spec(&self, container: &str) -> Result<Option<Vec<u8>>, Failure> {
        let transaction = self.database.begin_read().doing("read the records")?;
        let specs = transaction.open_table(SPECS).doing("open table specs")?;
        let found = specs.get(container).doing("read a spec")?;
        Ok(found.map(|value| value.value().to_vec()))
    }
}

fn read<T: DeserializeOwned>(kind: &str, id: &str, value: &[u8]) -> Option<T> {
    match serde_json::from_slice(value) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(kind, id, %error, "unreadable record; it is left out");
            None
        }
    }
}
