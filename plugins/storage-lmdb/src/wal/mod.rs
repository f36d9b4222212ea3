//! Write-ahead log (WAL): the acknowledged changes that the tree lacks, on the disk.
//!
//! The log is a sequence of batches in two files, `log-0` and `log-1`. The batches are divided into
//! numbered generations, each in one file. Once the tree has all changes of generation g,
//! generation g + 2 overwrites the same file from the start. Overwriting leaves the metadata of a
//! file unchanged, such as its length. This makes a flush several times as fast.
//!
//! # Torn batches and damage
//!
//! A batch that a power cut tore is the last one, and was not acknowledged: WAL recovery drops it.
//! A damaged or missing batch that was acknowledged is never skipped: the store refuses to open.
//! WAL recovery tells the two apart as follows.
//!
//! - Each file header has a random seed of checksums, new for each generation. The batches of an
//!   overwritten generation are therefore invalid. A client can store any bytes as a value, but
//!   cannot guess the seed. So no value passes as a batch.
//! - A batch header behind an invalid batch shows that the invalid one was acknowledged: a batch is
//!   begun only after the one before it was flushed.
//! - Each file header has the end of the previous generation, which shows if a batch of that
//!   generation is missing.
//! - The tree stores the WAL position up to which it has all changes. Only later batches are
//!   needed.
//!
//! One case is not detected. Damage to the very last batch, before the tree has it, looks like a
//! torn batch.
//!
//! Source: write-ahead logging (Gray). The seeds do what the salts do in SQLite's WAL.

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
