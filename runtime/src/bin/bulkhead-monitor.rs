//! The monitor's executable: one per pod, started by the daemon from a sealed memory file.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match bulkhead_runtime::monitor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; the exit code says it too.
            let _unheard = writeln!(std::io::stderr(), "bulkhead-monitor: {error}");
            ExitCode::FAILURE
        }
    }
}
