//! The commands `repair start` and `repair status`.

use clap::{Args, Subcommand};
use quorate_core::report::RepairStatus;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_line, print_report, table};

/// Subcommands of `repair`.
#[derive(Subcommand)]
pub(super) enum RepairCommand {
    /// Start a round of anti-entropy between one node and each of its peers now. The node is the
    /// first one that answers; use --nodes to choose it.
    Start(Repair),
    /// Show the rounds of anti-entropy of one node: their number, the keys that differed, and the
    /// last error.
    Status(Repair),
}

#[derive(Args)]
pub(super) struct Repair {
    #[command(flatten)]
    connection: Connection,
}

impl RepairCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let (repair, start) = match self {
            RepairCommand::Start(repair) => (repair, true),
            RepairCommand::Status(repair) => (repair, false),
        };
        let client = repair.connection.connect().await?;
        let status = client.repair(start).await?;
        if repair.connection.is_json() {
            print_report(&status);
            return Ok(());
        }
        if start {
            print_line!("the node begins a round with each peer; `quorate repair status` shows the progress");
        }
        print_status(&status);
        Ok(())
    }
}

fn print_status(status: &RepairStatus) {
    let mut out = table(&[
        "rounds",
        "running with",
        "keys that differed",
        "keys in the last round",
        "last ended",
        "last error",
    ]);
    out.add_row([
        status.rounds.to_string(),
        status.running_with.clone().unwrap_or_else(|| "no peer".into()),
        status.divergent_keys.to_string(),
        status.last_round_keys.to_string(),
        status.last_round_ago_ms.map_or("never".into(), |ms| format!("{:.1} s ago", ms as f64 / 1000.0)),
        status.last_error.clone().unwrap_or_default(),
    ]);
    print_line!("{out}");
}
