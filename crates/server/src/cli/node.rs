//! The command `node`: prepares one node for a planned stop.

use clap::Subcommand;
use quorate_core::report::ClusterReport;
use quorate_core::request::ClusterRequest;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_json, print_line};

/// Subcommands of `node`.
#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// Make a node refuse new requests of clients, before you stop its process. Clients then use
    /// other nodes. Requests under way are finished, and the node still works as a replica. A
    /// restart ends this state.
    Drain {
        /// Address of the node, "host:port".
        address: String,
        #[command(flatten)]
        connection: Connection,
    },
}

impl NodeCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let NodeCommand::Drain { address, connection } = self;
        let client = connection.connect_to_node(&address).await?;
        let report: ClusterReport = client.cluster_as(ClusterRequest::Drain).await?;
        if connection.is_json() {
            print_json(&serde_json::json!({ "node": report.node, "drained": true }));
        } else {
            print_line!("{} accepts no more requests of clients; you can stop its process now", report.node);
        }
        Ok(())
    }
}
