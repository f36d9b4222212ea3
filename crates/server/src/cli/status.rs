//! The command `status`: the cluster as one node sees it.

use clap::Args;
use quorate_core::report::Status as NodeStatus;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{mib, print_line, print_report, table};

#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.connection.connect().await?;
        let status = client.status().await?;
        match self.connection.is_json() {
            true => print_report(&status),
            false => print_status(&status),
        }
        Ok(())
    }
}

fn print_status(status: &NodeStatus) {
    print_line!(
        "cluster {:?} as {} sees it: layout {} ({}), {} partitions, {} replicas, storage {}, up for {:.1} s",
        status.cluster,
        status.node,
        status.layout,
        status.layout_digest,
        status.partitions,
        status.replicas,
        status.storage,
        status.uptime_ms as f64 / 1000.0
    );
    print_upkeep(status);
    let mut out =
        table(&["node", "address", "zone", "state", "partitions", "first replica of", "last error"]);
    let mut members: Vec<_> = status.members.iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    for member in members {
        out.add_row([
            member.name.clone(),
            member.address.clone(),
            member.zone.clone(),
            member.state.clone(),
            member.partitions.to_string(),
            member.first.to_string(),
            member.last_error.clone().unwrap_or_default(),
        ]);
    }
    print_line!("{out}");
}

/// Prints the node's problems and its background work, such as recovery, a layout change and
/// pending hints. Prints nothing for a subject that has nothing to report.
fn print_upkeep(status: &NodeStatus) {
    if let Some(reason) = &status.clock_problem {
        print_line!("this node coordinates no writes: {reason}");
    }
    if status.recovering > 0 {
        print_line!(
            "recovering: this node may have lost records of {} partitions; it answers no reads of them until it has \
             merged with enough other replicas",
            status.recovering
        );
    }
    if status.removed {
        print_line!(
            "this node was taken out of the cluster while it was down, and serves no requests: stop it, and start it \
             with an empty data folder to join again"
        );
    }
    if let Some(change) = &status.change {
        let layouts: Vec<String> = change.layouts.iter().map(u64::to_string).collect();
        print_line!(
            "a layout change is under way: layouts {} are active; all nodes have reached phase {:?}",
            layouts.join(", "),
            change.phase
        );
        for obstacle in &change.blocked_by {
            print_line!("! {obstacle}");
        }
    }
    for hints in &status.hints_for {
        print_line!(
            "hints: {} for {}, {}, the oldest {:.1} s old",
            hints.hints,
            hints.target,
            mib(hints.bytes),
            hints.oldest_ms as f64 / 1000.0
        );
    }
    if status.tombstone_gc.waiting > 0 {
        let blocked = status.tombstone_gc.blocked_by.as_deref();
        let why = blocked.map_or("until the grace period ends".to_owned(), |by| format!("blocked by {by}"));
        print_line!("tombstones: {} wait for their collection, {why}", status.tombstone_gc.waiting);
    }
}
