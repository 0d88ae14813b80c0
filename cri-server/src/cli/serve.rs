//! `bulkhead serve`.

use anyhow::bail;

use crate::config::Config;

/// Runs the daemon until a signal ends it.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    bail!("cannot serve {} yet", config.socket.path.display())
}
