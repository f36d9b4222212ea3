//! Write-ahead log (WAL): the acknowledged changes that the tree lacks, on the disk.
//!
//! The log is a sequence of batches in two files, `log-0` and `log-1`. A generation of batches
//! fills one file. Once the tree has a whole generation, the generation after the next overwrites
//! its file from the start. Overwriting leaves the metadata of a file unchanged, which makes a
//! flush several times as fast.
//!
//! # Torn batches and damage
//!
//! A batch that a power cut tore is the last one, and was not acknowledged: recovery drops it.
//! A damaged or missing batch that was acknowledged is never skipped: the store refuses to open.
//! Recovery tells the two apart as follows.
//!
//! - Each file header has a random seed of checksums, new for each generation. The batches of an
//!   overwritten generation are therefore invalid. No client can store a value that passes as a
//!   batch.
//! - A batch begun behind an invalid one shows that the invalid one was acknowledged.
//! - Each file header has the end of the previous generation.
//! - The tree has the position in the log up to which it has all changes.
//!
//! One case is not detected. Damage to the very last batch, before the tree has it, looks like a
//! torn batch.
//!
//! Source: write-ahead logging (Gray); salts as in SQLite's WAL.

mod files;
mod format;
#[cfg(test)]
mod io_trace;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use files::remove;
pub(crate) use format::WalPosition;
pub(crate) use recovery::recover;
pub(crate) use writer::Wal;
