//! The progress of all nodes in a layout change.

use quorate_core::report::ClusterReport;
use quorate_core::request::ClusterRequest;
use serde_json::{Value, json};

use super::show::print_change;
use crate::cli::connection::Connection;
use crate::cli::exit::Failure;
use crate::cli::output::{Output, mib, print_json, print_line, table};

/// Reports of all nodes that can be reached.
pub(super) struct Transfers {
    /// Report of the node that answered first. It names the other nodes.
    cluster: ClusterReport,
    nodes: Vec<ClusterReport>,
    unreachable: Vec<String>,
}

/// Length of the bar of a finished transfer, in characters.
const BAR_WIDTH: f64 = 20.0;

impl Transfers {
    pub(super) async fn fetch(connection: &Connection) -> Result<Transfers, Failure> {
        let cluster = connection.cluster_report(ClusterRequest::Show).await?;
        let mut nodes = Vec::new();
        let mut unreachable = Vec::new();
        for member in cluster.members.iter().filter(|member| member.role != "removed") {
            match report_of(connection, &member.address).await {
                Ok(report) => nodes.push(report),
                Err(_) => unreachable.push(member.name.clone()),
            }
        }
        Ok(Transfers { cluster, nodes, unreachable })
    }

    /// Returns true if no node that can be reached reports a layout change under way.
    pub(super) fn done(&self) -> bool {
        self.cluster.change.is_none() && self.nodes.iter().all(|node| node.change.is_none())
    }

    pub(super) fn print(&self, output: Output) {
        match output {
            Output::Json => print_json(&self.json()),
            Output::Table if self.done() => {
                if !self.unreachable.is_empty() {
                    let unreachable = self.unreachable.join(", ");
                    print_line!("nodes that cannot be reached, and may be in a layout change: {unreachable}");
                }
                print_line!("no layout change is under way: all nodes use layout {}", self.cluster.layout);
            }
            Output::Table => self.print_progress(),
        }
    }

    fn json(&self) -> Value {
        let node =
            |node: &ClusterReport| json!({ "node": node.node, "layout": node.layout, "change": node.change });
        let nodes: Vec<Value> = self.nodes.iter().map(node).collect();
        json!({ "done": self.done(), "nodes": nodes, "unreachable": self.unreachable })
    }

    fn print_progress(&self) {
        if let Some(change) = &self.cluster.change {
            print_change(change, self.cluster.read);
        }
        let mut out = table(&["node", "phase", "partitions", "", "copied", "rate", "time left"]);
        for node in &self.nodes {
            let Some(change) = &node.change else { continue };
            let transfer = &change.transfer;
            let share = match transfer.partitions {
                0 => 1.0,
                all => f64::from(transfer.done) / f64::from(all),
            };
            let bar = "█".repeat((share * BAR_WIDTH).round() as usize);
            out.add_row([
                node.node.clone(),
                change.phases.get(&node.node).cloned().unwrap_or_default(),
                format!("{}/{}", transfer.done, transfer.partitions),
                format!("{bar:░<20}"),
                mib(transfer.bytes),
                format!("{}/s", mib(transfer.bytes_per_s)),
                transfer.left_ms.map_or("-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0)),
            ]);
        }
        print_line!("{out}");
    }
}

async fn report_of(connection: &Connection, address: &str) -> Result<ClusterReport, Failure> {
    let client = connection.connect_to_node(address).await?;
    Ok(client.cluster_as(ClusterRequest::Show).await?)
}
