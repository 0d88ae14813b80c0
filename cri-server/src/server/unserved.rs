//! RPCs this build does not provide. The kubelet has a fallback for each.

use tonic::Status;

/// UNIMPLEMENTED with the RPC's name.
pub(super) fn unserved(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not provided by this version of Bulkhead"))
}
