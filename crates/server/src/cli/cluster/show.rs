//! The printed form of a cluster report.

use quorate_core::report::{ChangeReport, ClusterReport};

use crate::cli::output::{Output, print_line, print_report, table};

pub(super) fn print_cluster(report: &ClusterReport, output: Output) {
    if output == Output::Json {
        return print_report(report);
    }
    print_line!(
        "layout {} ({}) as {} sees it: {} partitions, {} replicas each",
        report.layout,
        report.digest,
        report.node,
        report.partitions,
        report.replicas
    );
    let mut out =
        table(&["node", "address", "zone", "weight", "role", "state", "partitions", "first replica of"]);
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
    print_line!("{out}");
    print_staged(report);
    if let Some(change) = &report.change {
        print_change(change, report.read);
    }
}

/// Prints the changes that wait for their commit.
pub(super) fn print_staged(report: &ClusterReport) {
    if !report.staged.is_empty() {
        print_line!("staged:");
    }
    for change in &report.staged {
        print_line!("  {change}");
    }
}

/// Prints the layout change under way. `read` is the number of the layout that reads use.
pub(super) fn print_change(change: &ChangeReport, read: u64) {
    let layouts: Vec<String> = change.layouts.iter().map(u64::to_string).collect();
    print_line!(
        "a layout change is under way: layouts {} are active, reads use {read}; all nodes have reached phase \"{}\"",
        layouts.join(", "),
        change.phase
    );
    for obstacle in &change.blocked_by {
        print_line!("! {obstacle}");
    }
}
