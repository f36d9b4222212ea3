//! The command `layout`: shows the layout that reads use, and past layouts.

use clap::Subcommand;
use quorate_core::request::ClusterRequest;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_line, print_report, table};
use super::ring::Ring;

/// Subcommands of `layout`.
#[derive(Subcommand)]
pub(super) enum LayoutCommand {
    /// Show the layout that reads use: its members, and the number of partitions that each holds.
    Show(Ring),
    /// Show past layouts, and the changes that made each.
    History(Connection),
}

impl LayoutCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            LayoutCommand::Show(ring) => ring.run().await,
            LayoutCommand::History(connection) => print_history(&connection).await,
        }
    }
}

async fn print_history(connection: &Connection) -> Result<(), Failure> {
    let report = connection.cluster_report(ClusterRequest::Show).await?;
    if connection.is_json() {
        print_report(&report.history);
        return Ok(());
    }
    let mut out = table(&["layout", "digest", "changes"]);
    for past in &report.history {
        out.add_row([past.number.to_string(), past.digest.clone(), past.summary.clone()]);
    }
    print_line!("{out}");
    Ok(())
}
