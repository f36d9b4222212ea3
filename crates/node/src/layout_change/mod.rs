//! A layout change, as one node goes through it: it copies the partitions that it gains, and hands over
//! those that it loses.

mod bucket_backfill;
pub(crate) mod driver;
mod give;
mod range_handoff;
mod throttle;
mod transfer;
