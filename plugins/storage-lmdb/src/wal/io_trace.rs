//! Unit tests only: records the writes and flushes of a WAL file, and makes a flush fail.

use std::sync::{Arc, Mutex};

/// Recorder of one file's writes and flushes. Both files of a WAL share the list of steps.
#[derive(Clone, Default)]
pub(super) struct IoTrace {
    pub(super) file: usize,
    /// True if the next flush fails.
    pub(super) fails: bool,
    pub(super) steps: Option<Arc<Mutex<Vec<IoStep>>>>,
}

pub(super) enum IoStep {
    Write {
        file: usize,
        bytes: Vec<u8>,
        offset: usize,
    },
    Sync {
        file: usize,
    },
    /// Added by the test: the last batch was acknowledged.
    Ack,
}

impl IoTrace {
    pub(super) fn record_write(&self, bytes: &[u8], offset: u64) {
        if let Some(steps) = &self.steps {
            let (file, bytes, offset) = (self.file, bytes.to_vec(), offset as usize);
            steps.lock().unwrap().push(IoStep::Write { file, bytes, offset });
        }
    }

    pub(super) fn record_sync(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.fails) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        if let Some(steps) = &self.steps {
            steps.lock().unwrap().push(IoStep::Sync { file: self.file });
        }
        Ok(())
    }
}
