//! Unit tests only: points in both threads where a test delays a step, or makes it fail.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quorate_core::storage::StorageError;

#[derive(Default)]
pub(super) struct FaultPoints {
    pub(super) before_append: FaultPoint,
    pub(super) after_append: FaultPoint,
    pub(super) before_checkpoint: FaultPoint,
    pub(super) after_piece: FaultPoint,
    pub(super) after_checkpoint: FaultPoint,
}

#[derive(Default)]
pub(super) struct FaultPoint {
    gate: Mutex<()>,
    delay: Mutex<Duration>,
    fault: Mutex<Fault>,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Fault {
    #[default]
    None,
    Once,
    Always,
}

impl FaultPoint {
    /// Called by the engine: waits for the gate and the delay, then fails if a fault is set.
    pub(super) fn pass(&self) -> Result<(), StorageError> {
        drop(self.gate.lock().unwrap());
        let delay = *self.delay.lock().unwrap();
        std::thread::sleep(delay);
        let mut fault = self.fault.lock().unwrap();
        if *fault == Fault::None {
            return Ok(());
        }
        if *fault == Fault::Once {
            *fault = Fault::None;
        }
        Err(StorageError::Io { detail: "the disk is gone".to_owned() })
    }

    /// Holds threads back at this point until the guard is dropped.
    pub(super) fn block(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    pub(super) fn delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub(super) fn fail_once(&self) {
        *self.fault.lock().unwrap() = Fault::Once;
    }

    pub(super) fn fail_always(&self) {
        *self.fault.lock().unwrap() = Fault::Always;
    }

    pub(super) fn repair(&self) {
        *self.fault.lock().unwrap() = Fault::None;
    }
}
