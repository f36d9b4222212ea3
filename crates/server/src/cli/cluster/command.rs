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

/// Subcommands of `cluster`.
#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the members, the nodes that wait to become members, the staged changes, and the
    /// progress of a layout change.
    Show(Connection),
    /// Stage the join of a node: it becomes a member and copies its share of the data.
    Join {
        /// Name of the node, its [node] name.
        name: String,
        /// Address of the node, "host:port". Default: the address that the cluster found by gossip.
        #[arg(long, default_value = "")]
        address: String,
        /// Failure zone of the node. Default: its [node] zone, if the cluster found it by gossip.
        #[arg(long, default_value = "")]
        zone: String,
        /// Share of the partitions that the node gets, relative to the other members' weights.
        #[arg(long, default_value_t = DEFAULT_WEIGHT)]
        weight: u16,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage the departure of a member: it hands over all its data and stops being a member. Stop
    /// its process when the change is done.
    Leave {
        /// Name of the member.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage the removal of a member whose disk is lost. The member hands nothing over, and no node
    /// waits for it. Stop its process first, and do not start it with its old data again: the
    /// cluster then refuses it.
    Remove {
        /// Name of the member.
        name: String,
        /// Confirm that the disk is lost, and with it all data that only this member held. If it is
        /// not lost, use `leave`.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage the replacement of a member by a new node, which gets the same weight.
    Replace {
        /// Name of the member to replace.
        name: String,
        /// Name of the new node, its [node] name.
        by: String,
        /// Address of the new node, "host:port". Default: the address that the cluster found by
        /// gossip.
        #[arg(long, default_value = "")]
        address: String,
        /// Confirm that the disk of the old member is lost: the member hands nothing over. Stop its
        /// process first.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage a new weight of a member: its share of the partitions, relative to the other members.
    Weight {
        /// Name of the member.
        name: String,
        /// New weight, 1 to 10000. The default weight is 100.
        weight: u16,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage a new failure zone of a member. The replicas of a partition are spread over zones.
    Zone {
        /// Name of the member.
        name: String,
        /// Name of the zone.
        zone: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Stage a new number of replicas of each partition (N). Buckets with an n of their own keep it.
    Replicas {
        /// New number of replicas.
        count: u8,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show the layout that the staged changes would make, and the data that would move.
    Plan(Connection),
    /// Make the staged changes the new layout. Nodes then move the data while clients read and
    /// write.
    Commit {
        /// Commit only if the staged changes still make the layout with this digest, which `plan`
        /// printed.
        #[arg(long, value_name = "DIGEST", value_parser = parse_digest)]
        plan: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Withdraw all staged changes.
    Clear(Connection),
    /// Show each node's progress in the layout change under way.
    Transfers {
        /// Print the progress again and again until the layout change is done.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Interval at which `transfers --watch` asks the nodes again for their progress.
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
                "remove {name}: this declares its disk lost, and all data that only {name} holds; add --force if the \
                 disk is lost, or use `quorate cluster leave {name}`, which first hands over all data"
            ))),
            ClusterCommand::Replace { name, by, address, force, connection } => {
                // The new node gets the old node's weight. If it is also in the same zone, it gets
                // exactly the old node's partitions.
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
        "`quorate cluster plan` shows the data that the staged changes would move; `quorate cluster commit` makes \
         them the new layout"
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
        // The request names the current plan, because the client may send it again. Otherwise a
        // retry could also commit changes that another operator has staged meanwhile.
        None => {
            let current: PlanReport = client.cluster_as(ClusterRequest::Plan).await?;
            parse_digest(&current.digest).map_err(Failure::usage)?
        }
    };
    let report: ClusterReport = client.cluster_as(ClusterRequest::Commit { plan: Some(plan) }).await?;
    match connection.is_json() {
        true => print_report(&report),
        false => print_line!(
            "layout {} is committed; `quorate cluster transfers` shows the progress",
            report.layout
        ),
    }
    Ok(())
}
