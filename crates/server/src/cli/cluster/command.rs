//! The command `cluster`: membership and layout changes.

use std::time::Duration;

use clap::Subcommand;
use quorate_core::change::LayoutChange;
use quorate_core::member::DEFAULT_WEIGHT;
use quorate_core::report::{ClusterReport, PlanReport};
use quorate_core::request::ClusterRequest;

use super::plan::{parse_digest, print_plan};
use super::show::{print_cluster, print_staged};
use super::transfers::Transfers;
use crate::cli::connection::Connection;
use crate::cli::exit::Failure;
use crate::cli::output::{print_line, print_report};

/// Changes are staged one by one; `plan` shows what they would move, `commit` makes them the new
/// layout, `clear` withdraws them. Reads and writes go on meanwhile.
#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show members, nodes that wait to become some, staged changes, and how far a change is.
    Show(Connection),
    /// Stage: a node becomes a member.
    Join {
        /// Its name ([node] name).
        name: String,
        /// Where it listens, "host:port". Default: where gossip found it.
        #[arg(long, default_value = "")]
        address: String,
        /// Its failure zone. Default: what its configuration says.
        #[arg(long, default_value = "")]
        zone: String,
        /// How much it is to hold, relative to the others.
        #[arg(long, default_value_t = DEFAULT_WEIGHT)]
        weight: u16,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: a member hands over what it holds, and is one no more.
    Leave {
        /// Its name.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: a member whose disk is lost is one no more. Stop it first: it is refused from then
    /// on.
    Remove {
        /// Its name.
        name: String,
        /// Say that its disk is lost. Without it, use `leave`.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: a new node takes a member's place.
    Replace {
        /// The member that goes.
        name: String,
        /// The node that comes.
        by: String,
        /// Where that listens. Default: where gossip found it.
        #[arg(long, default_value = "")]
        address: String,
        /// The disk of the member that goes is lost: it hands nothing over.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: how much a member is to hold, relative to the others.
    Weight {
        /// Its name.
        name: String,
        /// 1 to 10000; 100 is what members have that were given none.
        weight: u16,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: in which failure zone a member is.
    Zone {
        /// Its name.
        name: String,
        /// The zone.
        zone: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage: how many replicas a partition has.
    Replicas {
        /// N.
        count: u8,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show what the staged changes would move.
    Plan(Connection),
    /// Make the staged changes the new layout.
    Commit {
        /// Only if the plan is still the one that `plan` showed under this digest.
        #[arg(long, value_name = "DIGEST", value_parser = parse_digest)]
        plan: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Withdraw the staged changes.
    Clear(Connection),
    /// Show what every node copies or hands over.
    Transfers {
        /// Show it until the change is done.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Interval at which `transfers --watch` asks again.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl ClusterCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            ClusterCommand::Show(connection) => show(&connection, ClusterRequest::Show).await,
            ClusterCommand::Join { name, address, zone, weight, connection } => {
                stage(&connection, vec![LayoutChange::Join { name, address, zone, weight }]).await
            }
            ClusterCommand::Leave { name, connection } => {
                stage(&connection, vec![LayoutChange::Leave { name }]).await
            }
            ClusterCommand::Remove { name, force: true, connection } => {
                stage(&connection, vec![LayoutChange::Remove { name }]).await
            }
            ClusterCommand::Remove { name, force: false, .. } => Err(Failure::usage(format!(
                "remove {name}: this declares its disk lost, and what only it holds with it; add --force if that is so, \
                 or use `quorate cluster leave {name}`, which hands everything over first"
            ))),
            ClusterCommand::Replace { name, by, address, force, connection } => {
                // With the same weight the new node takes over exactly the old node's partitions.
                let known = connection.cluster_report(ClusterRequest::Show).await?;
                let old = known.members.iter().find(|member| member.name == name);
                let weight = old.map_or(DEFAULT_WEIGHT, |member| member.weight);
                let leave = if force { LayoutChange::Remove { name } } else { LayoutChange::Leave { name } };
                let join = LayoutChange::Join { name: by, address, zone: String::new(), weight };
                // The join comes first: if gossip does not know the new node, nothing is staged.
                stage(&connection, vec![join, leave]).await
            }
            ClusterCommand::Weight { name, weight, connection } => {
                stage(&connection, vec![LayoutChange::Weight { name, weight }]).await
            }
            ClusterCommand::Zone { name, zone, connection } => {
                stage(&connection, vec![LayoutChange::Zone { name, zone }]).await
            }
            ClusterCommand::Replicas { count, connection } => {
                stage(&connection, vec![LayoutChange::Replicas { count }]).await
            }
            ClusterCommand::Plan(connection) => plan(&connection).await,
            ClusterCommand::Commit { plan, connection } => commit(&connection, plan).await,
            ClusterCommand::Clear(connection) => show(&connection, ClusterRequest::Clear).await,
            ClusterCommand::Transfers { watch, connection } => loop {
                let transfers = Transfers::fetch(&connection).await?;
                transfers.print(connection.output());
                if transfers.done() || !watch {
                    return Ok(());
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            },
        }
    }
}

async fn show(connection: &Connection, request: ClusterRequest) -> Result<(), Failure> {
    let report = connection.cluster_report(request).await?;
    print_cluster(&report, connection.output());
    Ok(())
}

async fn stage(connection: &Connection, changes: Vec<LayoutChange>) -> Result<(), Failure> {
    let client = connection.connect().await?;
    let mut report = None;
    for change in changes {
        report =
            Some(client.cluster_as::<ClusterReport>(ClusterRequest::Stage(client.staged(change))).await?);
    }
    let Some(report) = report else { return Ok(()) };
    if connection.is_json() {
        print_report(&report);
        return Ok(());
    }
    print_staged(&report);
    print_line!(
        "`quorate cluster plan` shows what they would move, `quorate cluster commit` makes them the new layout"
    );
    Ok(())
}

async fn plan(connection: &Connection) -> Result<(), Failure> {
    let client = connection.connect().await?;
    let plan: PlanReport = client.cluster_as(ClusterRequest::Plan).await?;
    match connection.is_json() {
        true => print_report(&plan),
        false => print_plan(&plan),
    }
    Ok(())
}

async fn commit(connection: &Connection, plan: Option<u64>) -> Result<(), Failure> {
    let client = connection.connect().await?;
    let plan = match plan {
        Some(plan) => plan,
        // A retry must commit this plan, and none of the changes that others stage meanwhile.
        None => {
            let current: PlanReport = client.cluster_as(ClusterRequest::Plan).await?;
            parse_digest(&current.digest).map_err(Failure::usage)?
        }
    };
    let report: ClusterReport = client.cluster_as(ClusterRequest::Commit { plan: Some(plan) }).await?;
    match connection.is_json() {
        true => print_report(&report),
        false => print_line!(
            "layout {} is committed; `quorate cluster transfers` shows how far it is",
            report.layout
        ),
    }
    Ok(())
}
