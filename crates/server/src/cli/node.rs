//! The command `node`: prepares one node for its stop.

use clap::Subcommand;
use quorate_core::report::ClusterReport;
use quorate_core::request::ClusterRequest;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_json, print_line};

/// One node.
#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// Have the node take no more requests of clients, which go to others; those under way are
    /// finished. It goes on as a replica; stop it next.
    Drain {
        /// Where it listens, "host:port".
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
            print_line!("{} takes no more requests of clients; stop it when you like", report.node);
        }
        Ok(())
    }
}
