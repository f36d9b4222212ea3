//! The printed form of a plan, and its digest.

use quorate_core::report::PlanReport;

use crate::cli::output::{mib, print_line, table};

pub(super) fn print_plan(plan: &PlanReport) {
    print_line!("layout {}, {} replicas of each partition:", plan.layout, plan.replicas);
    for change in &plan.staged {
        print_line!("  {change}");
    }
    let mut out = table(&["node", "zone", "partitions now", "partitions after", "to copy", "estimated size"]);
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
    print_line!("{out}");
    print_line!(
        "{} replicas of partitions would be copied (at least {} are needed for these numbers of partitions), about \
         {}; each partition has replicas in at least {} zone{}",
        plan.moved,
        plan.fewest,
        mib(plan.bytes),
        plan.zones,
        if plan.zones == 1 { "" } else { "s" }
    );
    print_line!("to commit exactly this layout: quorate cluster commit --plan {}", plan.digest);
}

/// Parses a plan's digest as `print_plan` prints it.
pub(super) fn parse_digest(text: &str) -> Result<u64, String> {
    let has_all_digits = text.len() == 16;
    let digest = u64::from_str_radix(text, 16).ok().filter(|_| has_all_digits);
    digest
        .ok_or_else(|| "a plan's digest has 16 hexadecimal digits, as `quorate cluster plan` shows it".into())
}
