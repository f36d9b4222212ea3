//! The commands `ring` and `layout show`: the spread of the partitions over the nodes.

use clap::Args;
use quorate_core::{Key, Layout, NodeId, PartitionId};
use serde_json::{Value, json};

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_json, print_line, table};

#[derive(Args)]
pub(super) struct Ring {
    /// Show also the partition, replicas and fallbacks of this key.
    #[arg(long)]
    key: Option<String>,
    /// Bucket of the key.
    #[arg(long, default_value = "default")]
    bucket: String,
    #[command(flatten)]
    connection: Connection,
}

/// Length of a bar that represents all partitions, in characters.
const BAR_WIDTH: f64 = 40.0;

impl Ring {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = match &self.key {
            Some(key) => Some(Key::new(self.bucket.as_bytes(), key.as_bytes())?),
            None => None,
        };
        let client = self.connection.connect().await?;
        let layout = client.layout().await?;
        let partition = key.map(|key| layout.partition_of(key.hash()));
        match self.connection.is_json() {
            true => print_json(&layout_json(&layout, partition)),
            false => self.print(&layout, partition),
        }
        Ok(())
    }

    fn print(&self, layout: &Layout, partition: Option<PartitionId>) {
        print_line!(
            "layout {} ({:016x}): {} partitions, {} replicas each",
            layout.number(),
            layout.digest(),
            layout.partitions(),
            layout.replicas()
        );
        let mut out = table(&["node", "address", "partitions", "first replica of", "share"]);
        let all = f64::from(layout.partitions()) * f64::from(layout.replicas());
        let mut members: Vec<_> = layout.members().iter().collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        for member in members {
            let load = layout.load_of(member.id);
            let share = f64::from(load.partitions) / all;
            let bar = "█".repeat((share * BAR_WIDTH).round() as usize);
            out.add_row([
                member.name.clone(),
                member.address.clone(),
                load.partitions.to_string(),
                load.first.to_string(),
                format!("{:5.1} % {bar}", share * 100.0),
            ]);
        }
        print_line!("{out}");
        if let Some(partition) = partition {
            print_line!(
                "{}/{} lies in partition {}: replicas {}; fallbacks {}",
                self.bucket,
                self.key.as_deref().unwrap_or_default(),
                partition.0,
                names(layout, layout.replicas_of(partition, layout.replicas())).join(", "),
                names(layout, &layout.fallbacks_of(partition, layout.replicas())).join(", ")
            );
        }
    }
}

fn layout_json(layout: &Layout, partition: Option<PartitionId>) -> Value {
    let members: Vec<Value> = layout
        .members()
        .iter()
        .map(|member| {
            let load = layout.load_of(member.id);
            json!({
                "name": member.name,
                "address": member.address,
                "partitions": load.partitions,
                "first": load.first,
            })
        })
        .collect();
    json!({
        "layout": layout.number(),
        "digest": format!("{:016x}", layout.digest()),
        "partitions": layout.partitions(),
        "replicas": layout.replicas(),
        "members": members,
        "key": partition.map(|partition| json!({
            "partition": partition.0,
            "replicas": names(layout, layout.replicas_of(partition, layout.replicas())),
            "fallbacks": names(layout, &layout.fallbacks_of(partition, layout.replicas())),
        })),
    })
}

fn names(layout: &Layout, nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(|&node| layout.name_of(node)).collect()
}
