//! cluster, layout, node: to see and to change who holds what.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_client::{Client, ClientConfig};
use quorate_core::change::Change;
use quorate_core::layout::DEFAULT_WEIGHT;
use quorate_core::request::{ChangeReport, ClusterReport, ClusterRequest, PlanReport};

use super::exit::Failure;
use super::{Connection, print_json, table};

/// Changes are staged one by one; `plan` shows what they would move, `commit` makes them the new layout, `clear` withdraws
/// them. Reads and writes go on meanwhile.
#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Show members, nodes that wait to become some, staged changes, and how far a change is.
    Show(Plain),
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
        plain: Plain,
    },
    /// Stage: a member hands over what it holds, and is one no more.
    Leave {
        /// Its name.
        name: String,
        #[command(flatten)]
        plain: Plain,
    },
    /// Stage: a member whose disk is lost is one no more. Stop it first: it is refused from then on.
    Remove {
        /// Its name.
        name: String,
        /// Say that its disk is lost. Without it, use `leave`.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        plain: Plain,
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
        plain: Plain,
    },
    /// Stage: how much a member is to hold, relative to the others.
    Weight {
        /// Its name.
        name: String,
        /// 1 to 10000; 100 is what members have that were given none.
        weight: u16,
        #[command(flatten)]
        plain: Plain,
    },
    /// Stage: in which failure zone a member is.
    Zone {
        /// Its name.
        name: String,
        /// The zone.
        zone: String,
        #[command(flatten)]
        plain: Plain,
    },
    /// Stage: how many replicas a partition has.
    Replicas {
        /// N.
        count: u8,
        #[command(flatten)]
        plain: Plain,
    },
    /// Show what the staged changes would move.
    Plan(Plain),
    /// Make the staged changes the new layout.
    Commit {
        /// Only if the plan is still the one that `plan` showed under this digest.
        #[arg(long, value_name = "DIGEST", value_parser = digest)]
        plan: Option<u64>,
        #[command(flatten)]
        plain: Plain,
    },
    /// Withdraw the staged changes.
    Clear(Plain),
    /// Show what every node copies or hands over.
    Transfers {
        /// Show it until the change is done.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        plain: Plain,
    },
}

/// See the layout that is read, and those before it.
#[derive(Subcommand)]
pub(super) enum LayoutCommand {
    /// Show how partitions are spread.
    Show(super::inspect::Ring),
    /// Show past layouts and what was changed.
    History(Plain),
}

/// One node.
#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// Have the node take no more requests of clients, which go to others; those under way are finished. It goes on as a
    /// replica; stop it next.
    Drain {
        /// Where it listens, "host:port".
        address: String,
        #[command(flatten)]
        plain: Plain,
    },
}

#[derive(Args)]
pub(super) struct Plain {
    #[command(flatten)]
    connection: Connection,
}

impl ClusterCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            ClusterCommand::Show(plain) => show(&plain, &ask(&plain, ClusterRequest::Show).await?),
            ClusterCommand::Join { name, address, zone, weight, plain } => {
                stage(plain, vec![Change::Join { name, address, zone, weight }]).await
            }
            ClusterCommand::Leave { name, plain } => stage(plain, vec![Change::Leave { name }]).await,
            ClusterCommand::Remove { name, force, plain } => match force {
                true => stage(plain, vec![Change::Remove { name }]).await,
                false => Err(Failure::usage(format!(
                    "remove {name}: this declares its disk lost, and what only it holds with it; add --force if that is so, \
                     or use `quorate cluster leave {name}`, which hands everything over first"
                ))),
            },
            ClusterCommand::Replace { name, by, address, force, plain } => {
                // With the same weight it takes over exactly what the other one held.
                let known = ask(&plain, ClusterRequest::Show).await?;
                let old = known.members.iter().find(|member| member.name == name);
                let weight = old.map_or(DEFAULT_WEIGHT, |member| member.weight);
                let goes = if force { Change::Remove { name } } else { Change::Leave { name } };
                // Who comes is looked for first: if it is not found, nothing is staged.
                let comes = Change::Join { name: by, address, zone: String::new(), weight };
                stage(plain, vec![comes, goes]).await
            }
            ClusterCommand::Weight { name, weight, plain } => {
                stage(plain, vec![Change::Weight { name, weight }]).await
            }
            ClusterCommand::Zone { name, zone, plain } => {
                stage(plain, vec![Change::Zone { name, zone }]).await
            }
            ClusterCommand::Replicas { count, plain } => stage(plain, vec![Change::Replicas { count }]).await,
            ClusterCommand::Plan(plain) => {
                let client = plain.connection.connect().await?;
                let plan: PlanReport = client.cluster_as(ClusterRequest::Plan).await?;
                match plain.connection.is_json() {
                    true => print_json(&serde_json::to_value(&plan).expect("plain data")),
                    false => show_plan(&plan),
                }
                Ok(())
            }
            ClusterCommand::Commit { plan, plain } => {
                let client = plain.connection.connect().await?;
                let plan = match plan {
                    Some(plan) => plan,
                    // So that a repetition commits this, and nothing that others stage meanwhile.
                    None => {
                        let shown: PlanReport = client.cluster_as(ClusterRequest::Plan).await?;
                        digest(&shown.digest).map_err(Failure::usage)?
                    }
                };
                let commit = ClusterRequest::Commit { plan: Some(plan) };
                let report: ClusterReport = client.cluster_as(commit).await?;
                if !plain.connection.is_json() {
                    say!(
                        "layout {} is committed; `quorate cluster transfers` shows how far it is",
                        report.layout
                    );
                    return Ok(());
                }
                show(&plain, &report)
            }
            ClusterCommand::Clear(plain) => show(&plain, &ask(&plain, ClusterRequest::Clear).await?),
            ClusterCommand::Transfers { watch, plain } => transfers(&plain, watch).await,
        }
    }
}

impl LayoutCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let plain = match self {
            LayoutCommand::Show(ring) => return ring.run().await,
            LayoutCommand::History(plain) => plain,
        };
        let report = ask(&plain, ClusterRequest::Show).await?;
        if plain.connection.is_json() {
            print_json(&serde_json::to_value(&report.history).expect("plain data"));
            return Ok(());
        }
        let mut out = table(&["layout", "digest", "what was changed"]);
        for past in &report.history {
            out.add_row([past.number.to_string(), past.digest.clone(), past.summary.clone()]);
        }
        say!("{out}");
        Ok(())
    }
}

impl NodeCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let NodeCommand::Drain { address, plain } = self;
        let client = only(&address, plain.connection.config()?.timeout).await?;
        let report: ClusterReport = client.cluster_as(ClusterRequest::Drain).await?;
        if plain.connection.is_json() {
            print_json(&serde_json::json!({ "node": report.node, "drained": true }));
        } else {
            say!("{} takes no more requests of clients; stop it when you like", report.node);
        }
        Ok(())
    }
}

/// A client of one node and no other.
async fn only(address: &str, timeout: Duration) -> Result<std::rc::Rc<Client>, Failure> {
    let mut config = ClientConfig::new(address)?;
    config.timeout = timeout;
    config.follow = false;
    Ok(Client::connect(config).await?)
}

async fn ask(plain: &Plain, request: ClusterRequest) -> Result<ClusterReport, Failure> {
    let client = plain.connection.connect().await?;
    Ok(client.cluster_as(request).await?)
}

async fn stage(plain: Plain, changes: Vec<Change>) -> Result<(), Failure> {
    let client = plain.connection.connect().await?;
    let mut report = None;
    for change in changes {
        report =
            Some(client.cluster_as::<ClusterReport>(ClusterRequest::Stage(client.staged(change))).await?);
    }
    let Some(report) = report else { return Ok(()) };
    if plain.connection.is_json() {
        return show(&plain, &report);
    }
    say_staged(&report);
    say!(
        "`quorate cluster plan` shows what they would move, `quorate cluster commit` makes them the new layout"
    );
    Ok(())
}

fn say_staged(report: &ClusterReport) {
    if !report.staged.is_empty() {
        say!("staged:");
    }
    for change in &report.staged {
        say!("  {change}");
    }
}

fn show(plain: &Plain, report: &ClusterReport) -> Result<(), Failure> {
    if plain.connection.is_json() {
        print_json(&serde_json::to_value(report).expect("plain data"));
        return Ok(());
    }
    say!(
        "layout {} ({}) as {} sees it: {} partitions, {} replicas each",
        report.layout,
        report.digest,
        report.node,
        report.partitions,
        report.replicas
    );
    let mut out = table(&["node", "address", "zone", "weight", "role", "state", "partitions", "first"]);
    for member in &report.members {
        out.add_row([
            member.name.clone(),
            member.address.clone(),
            member.zone.clone(),
            member.weight.to_string(),
            member.role.clone(),
            member.state.clone(),
            member.partitions.to_string(),
            member.first.to_string(),
        ]);
    }
    say!("{out}");
    say_staged(report);
    if let Some(change) = &report.change {
        say_change(change, report.read);
    }
    Ok(())
}

fn say_change(change: &ChangeReport, read: u64) {
    let layouts: Vec<String> = change.layouts.iter().map(u64::to_string).collect();
    say!(
        "a change is under way: layouts {} are active, {read} is read; everybody is at \"{}\"",
        layouts.join(", "),
        change.phase
    );
    for trouble in &change.trouble {
        say!("! {trouble}");
    }
}

fn show_plan(plan: &PlanReport) {
    say!("layout {}, {} replicas of each partition:", plan.layout, plan.replicas);
    for change in &plan.staged {
        say!("  {change}");
    }
    let mut out = table(&["node", "zone", "partitions now", "then", "copies", "about"]);
    for node in &plan.nodes {
        out.add_row([
            node.name.clone(),
            node.zone.clone(),
            node.before.to_string(),
            node.after.to_string(),
            node.gains.to_string(),
            mib(node.bytes),
        ]);
    }
    say!("{out}");
    say!(
        "{} replicas of partitions are copied ({} is the fewest for these loads), about {}; each partition is in {} zone{} or more",
        plan.moved,
        plan.fewest,
        mib(plan.bytes),
        plan.zones,
        if plan.zones == 1 { "" } else { "s" }
    );
    say!("to commit this and nothing else: quorate cluster commit --plan {}", plan.digest);
}

fn digest(text: &str) -> Result<u64, String> {
    let whole = text.len() == 16;
    let digest = u64::from_str_radix(text, 16).ok().filter(|_| whole);
    digest
        .ok_or_else(|| "a plan's digest has 16 hexadecimal digits, as `quorate cluster plan` shows it".into())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1024.0 / 1024.0)
}

/// Asks every node that can be reached.
async fn transfers(plain: &Plain, watch: bool) -> Result<(), Failure> {
    let timeout = plain.connection.config()?.timeout;
    loop {
        let report = ask(plain, ClusterRequest::Show).await?;
        let mut reports = Vec::new();
        let mut silent = Vec::new();
        for member in report.members.iter().filter(|member| member.role != "removed") {
            match only(&member.address, timeout).await {
                Ok(client) => match client.cluster_as::<ClusterReport>(ClusterRequest::Show).await {
                    Ok(theirs) => reports.push(theirs),
                    Err(_) => silent.push(member.name.clone()),
                },
                Err(_) => silent.push(member.name.clone()),
            }
        }
        let done = report.change.is_none() && reports.iter().all(|theirs| theirs.change.is_none());
        if plain.connection.is_json() {
            let nodes: Vec<_> = reports
                .iter()
                .map(|theirs| serde_json::json!({ "node": theirs.node, "layout": theirs.layout, "change": theirs.change }))
                .collect();
            print_json(&serde_json::json!({ "done": done, "nodes": nodes, "unreachable": silent }));
        } else if done {
            if !silent.is_empty() {
                say!("not asked, since they can't be reached: {}", silent.join(", "));
            }
            say!("no change is under way: layout {} is settled", report.layout);
        } else {
            show_transfers(&report, &reports);
        }
        if done || !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn show_transfers(report: &ClusterReport, reports: &[ClusterReport]) {
    if let Some(change) = &report.change {
        say_change(change, report.read);
    }
    let mut out = table(&["node", "phase", "partitions", "", "copied", "rate", "left"]);
    for theirs in reports {
        let Some(change) = &theirs.change else { continue };
        let transfer = &change.transfer;
        let share = match transfer.partitions {
            0 => 1.0,
            all => f64::from(transfer.done) / f64::from(all),
        };
        let bar = "█".repeat((share * 20.0).round() as usize);
        out.add_row([
            theirs.node.clone(),
            change.phases.get(&theirs.node).cloned().unwrap_or_default(),
            format!("{}/{}", transfer.done, transfer.partitions),
            format!("{bar:░<20}"),
            mib(transfer.bytes),
            format!("{}/s", mib(transfer.bytes_per_s)),
            transfer.left_ms.map_or("-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0)),
        ]);
    }
    say!("{out}");
}
