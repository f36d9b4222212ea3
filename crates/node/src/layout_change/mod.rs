//! One node's work in a layout change: it copies the partitions that it gains, and hands off the
//! ones that it loses.

mod bucket_backfill;
pub(crate) mod driver;
mod give;
mod range_handoff;
mod throttle;
mod transfer;
