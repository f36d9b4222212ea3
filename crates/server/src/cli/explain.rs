//! The command `explain`: a key's replicas, and the versions that each of them holds.

use clap::Args;
use quorate_core::report::Explanation;

use super::connection::Connection;
use super::exit::Failure;
use super::keys::KeyArguments;
use super::output::{print_line, print_report, table};

#[derive(Args)]
pub(super) struct Explain {
    #[command(flatten)]
    arguments: KeyArguments,
    #[command(flatten)]
    connection: Connection,
}

impl Explain {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = self.arguments.key()?;
        let client = self.connection.connect().await?;
        let explanation = client.explain(&key).await?;
        match self.connection.is_json() {
            true => print_report(&explanation),
            false => print_explanation(&explanation),
        }
        Ok(())
    }
}

fn print_explanation(explanation: &Explanation) {
    print_line!(
        "{}/{} lies in partition {} of layout {} (n={} r={} w={})",
        explanation.bucket,
        explanation.key,
        explanation.partition,
        explanation.layout,
        explanation.n,
        explanation.r,
        explanation.w
    );
    print_line!("replicas: {}", explanation.replicas.join(", "));
    if !explanation.fallbacks.is_empty() {
        print_line!("fallbacks: {}", explanation.fallbacks.join(", "));
    }
    let mut out = table(&["replica", "state", "digest", "version (actor@ms+count)", "bytes"]);
    for holding in &explanation.holdings {
        let digest = holding.digest.clone().unwrap_or_else(|| "-".into());
        let mut rows = holding.versions.iter().map(|version| {
            let bytes = version.value_bytes.map_or_else(|| "tombstone".to_owned(), |bytes| bytes.to_string());
            (version.dot.clone(), bytes)
        });
        let (dot, bytes) = rows.next().unwrap_or_else(|| ("-".into(), "-".into()));
        out.add_row([holding.node.clone(), holding.state.clone(), digest, dot, bytes]);
        for (dot, bytes) in rows {
            out.add_row([String::new(), String::new(), String::new(), dot, bytes]);
        }
    }
    print_line!("{out}");
    if !explanation.hints.is_empty() {
        print_line!("nodes that keep a hint of this key for a replica: {}", explanation.hints.join(", "));
    }
    print_line!(
        "{}",
        match explanation.agree {
            true => "the replicas agree",
            false => "the replicas differ, or some did not answer; a read repairs those that differ",
        }
    );
}
