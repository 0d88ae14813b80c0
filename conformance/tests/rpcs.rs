//! `docs/cri.md` says of every RPC whether it is served; here a running daemon is asked.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::node::{Node, channel};
use bulkhead_conformance::registry::Registry;
use bulkhead_proto::runtime::v1::VersionRequest;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

/// Service and RPC → whether the table says it is served.
fn documented() -> Result<BTreeMap<(String, String), bool>> {
    let table = include_str!("../../docs/cri.md");
    table
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| {
            cells
                .first()
                .is_some_and(|service| service.ends_with("Service"))
        })
        .map(|cells| match cells.as_slice() {
            [service, rpc, state, ..] => {
                ensure!(
                    ["served", "unimplemented"].contains(state),
                    "{rpc}: state {state:?}"
                );
                Ok((
                    ((*service).to_owned(), (*rpc).to_owned()),
                    *state == "served",
                ))
            }
            _ => anyhow::bail!("a row without three cells: {cells:?}"),
        })
        .collect()
}

#[tokio::test]
async fn the_table_of_rpcs_says_what_the_daemon_answers() -> Result<()> {
    let documented = documented()?;
    ensure!(
        documented.len() == 43,
        "{} RPCs in docs/cri.md",
        documented.len()
    );
    let registry = Registry::start()?;
    let node = Node::start(&registry, &[]).await?;
    let channel = channel(&node.socket())?;
    for ((service, rpc), served) in documented {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{service}/{rpc}"))?;
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.context("connect")?;
        // An empty message is a valid one of every type; only the code of the answer matters.
        let codec = tonic_prost::ProstCodec::<VersionRequest, ()>::default();
        let answer = client
            .unary(Request::new(VersionRequest::default()), path, codec)
            .await;
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        ensure!(
            (code != Code::Unimplemented) == served,
            "{rpc}: docs/cri.md says served = {served}, the daemon answers {code:?}"
        );
    }
    node.finish().await
}
