//! explain, status, ring.

use clap::Args;
use quorate_core::Layout;
use serde_json::json;

use super::exit::Failure;
use super::keys::Named;
use super::{Connection, print_json, table};

#[derive(Args)]
pub(super) struct Explain {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    connection: Connection,
}

impl Explain {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = self.named.key()?;
        let client = self.connection.connect().await?;
        let explanation = client.explain(&key).await?;
        if self.connection.is_json() {
            print_json(&serde_json::to_value(&explanation).expect("plain data"));
            return Ok(());
        }
        say!(
            "{}/{} lies in partition {} of layout {} (n={} r={} w={})",
            explanation.bucket,
            explanation.key,
            explanation.partition,
            explanation.layout,
            explanation.n,
            explanation.r,
            explanation.w
        );
        say!("replicas: {}", explanation.replicas.join(", "));
        if !explanation.fallbacks.is_empty() {
            say!("fallbacks: {}", explanation.fallbacks.join(", "));
        }
        let mut out = table(&["replica", "state", "digest", "version (actor@ms+count)", "bytes"]);
        for holding in &explanation.holdings {
            let digest = holding.digest.clone().unwrap_or_else(|| "-".into());
            let mut rows = holding.versions.iter().map(|version| {
                let bytes =
                    version.value_bytes.map_or_else(|| "tombstone".to_owned(), |bytes| bytes.to_string());
                (version.dot.clone(), bytes)
            });
            let (dot, bytes) = rows.next().unwrap_or_else(|| ("-".into(), "-".into()));
            out.add_row([holding.node.clone(), holding.state.clone(), digest, dot, bytes]);
            for (dot, bytes) in rows {
                out.add_row([String::new(), String::new(), String::new(), dot, bytes]);
            }
        }
        say!("{out}");
        if !explanation.hints.is_empty() {
            say!("kept as a hint for who can't be reached on: {}", explanation.hints.join(", "));
        }
        say!(
            "{}",
            if explanation.agree { "the replicas agree" } else { "the replicas differ: a read repairs them" }
        );
        Ok(())
    }
}

#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.connection.connect().await?;
        let status = client.status().await?;
        if self.connection.is_json() {
            print_json(&serde_json::to_value(&status).expect("plain data"));
            return Ok(());
        }
        say!(
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
        upkeep(&status);
        let mut out = table(&["node", "address", "zone", "state", "partitions", "first", "trouble"]);
        let mut members = status.members;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        for member in members {
            out.add_row([
                member.name,
                member.address,
                member.zone,
                member.state,
                member.partitions.to_string(),
                member.first.to_string(),
                member.trouble.unwrap_or_default(),
            ]);
        }
        say!("{out}");
        Ok(())
    }
}

/// What goes on without any client, as far as there is something to tell.
fn upkeep(status: &quorate_core::request::Status) {
    if let Some(trouble) = &status.clock_trouble {
        say!("coordinates nothing: {trouble}");
    }
    if status.recovering > 0 {
        say!(
            "recovering: {} partitions may have forgotten, and answer no reads until enough others were asked",
            status.recovering
        );
    }
    if status.removed {
        say!(
            "taken out of the cluster while it was away: it serves nothing; stop it, and start it with an empty data folder to join again"
        );
    }
    if let Some(change) = &status.change {
        let layouts: Vec<String> = change.layouts.iter().map(u64::to_string).collect();
        say!(
            "a change of layout is under way: {} are active, everybody is at {:?}",
            layouts.join(", "),
            change.phase
        );
        for trouble in &change.trouble {
            say!("! {trouble}");
        }
    }
    for hints in &status.hints_for {
        say!(
            "hints: {} for {}, {:.1} MiB, the oldest {:.1} s old",
            hints.hints,
            hints.target,
            hints.bytes as f64 / 1024.0 / 1024.0,
            hints.oldest_ms as f64 / 1000.0
        );
    }
    if status.reaping.waiting > 0 {
        let blocked = status.reaping.blocked_by.as_deref();
        let why = blocked.map_or("until a grace period is over".to_owned(), |by| format!("blocked by {by}"));
        say!("tombstones: {} wait to be reaped, {why}", status.reaping.waiting);
    }
}

#[derive(Args)]
pub(super) struct Ring {
    /// Show where this key lies.
    #[arg(long)]
    key: Option<String>,
    /// The key's bucket.
    #[arg(long, default_value = "default")]
    bucket: String,
    #[command(flatten)]
    connection: Connection,
}

impl Ring {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = match &self.key {
            Some(key) => Some(quorate_core::Key::new(self.bucket.as_bytes(), key.as_bytes())?),
            None => None,
        };
        let client = self.connection.connect().await?;
        let layout = client.layout().await?;
        let place = key.map(|key| layout.partition_of(key.hash()));
        if self.connection.is_json() {
            print_json(&json!({
                "layout": layout.number(),
                "digest": format!("{:016x}", layout.digest()),
                "partitions": layout.partitions(),
                "replicas": layout.replicas(),
                "members": layout.members().iter().map(|member| {
                    let load = layout.load_of(member.id);
                    json!({ "name": member.name, "address": member.address, "partitions": load.partitions, "first": load.first })
                }).collect::<Vec<_>>(),
                "key": place.map(|partition| json!({
                    "partition": partition.0,
                    "replicas": names(&layout, layout.replicas_of(partition, layout.replicas())),
                    "fallbacks": names(&layout, &layout.fallbacks_of(partition, layout.replicas())),
                })),
            }));
            return Ok(());
        }
        say!(
            "layout {} ({:016x}): {} partitions, {} replicas each",
            layout.number(),
            layout.digest(),
            layout.partitions(),
            layout.replicas()
        );
        let mut out = table(&["node", "address", "partitions", "first", "share"]);
        let all = f64::from(layout.partitions()) * f64::from(layout.replicas());
        let mut members: Vec<_> = layout.members().iter().collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        for member in members {
            let load = layout.load_of(member.id);
            let share = f64::from(load.partitions) / all;
            let bar = "█".repeat((share * 40.0).round() as usize);
            out.add_row([
                member.name.clone(),
                member.address.clone(),
                load.partitions.to_string(),
                load.first.to_string(),
                format!("{:5.1} % {bar}", share * 100.0),
            ]);
        }
        say!("{out}");
        if let Some(partition) = place {
            say!(
                "{}/{} lies in partition {}: replicas {}; fallbacks {}",
                self.bucket,
                self.key.as_deref().unwrap_or_default(),
                partition.0,
                names(&layout, layout.replicas_of(partition, layout.replicas())).join(", "),
                names(&layout, &layout.fallbacks_of(partition, layout.replicas())).join(", ")
            );
        }
        Ok(())
    }
}

fn names(layout: &Layout, nodes: &[quorate_core::NodeId]) -> Vec<String> {
    nodes.iter().map(|&node| layout.name_of(node)).collect()
}
