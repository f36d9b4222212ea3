//! The progress of a run, and its bar on a terminal.

use std::cell::Cell;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::Plan;

/// Counters that the threads of a run share with the progress bar.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) loaded: AtomicU64,
    pub(super) done: AtomicU64,
}

/// Progress bar. It is hidden if stderr is no terminal.
pub(super) struct Bar {
    bar: ProgressBar,
    /// Number of keys to write before the run, 0 if none.
    keys: u64,
    /// Duration of the run, without the loading of the keys.
    run_time: Duration,
    loaded_after: Cell<Option<Duration>>,
    progress: Arc<Progress>,
}

impl Bar {
    pub(super) fn new(plan: &Plan, progress: Arc<Progress>) -> Bar {
        let keys = if plan.load { u64::from(plan.keys) } else { 0 };
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(keys), target);
        let style = ProgressStyle::with_template("{msg:<28} {wide_bar} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar { bar, keys, run_time: plan.warm_up + plan.measured, loaded_after: Cell::new(None), progress }
    }

    pub(super) fn tick(&self) {
        let loaded = self.progress.loaded.load(Ordering::Relaxed);
        let done = self.progress.done.load(Ordering::Relaxed);
        if loaded < self.keys {
            self.bar.set_message(format!("loading: {loaded} keys"));
            self.bar.set_position(loaded);
        } else {
            let loaded_after = self.loaded_after.get().unwrap_or(self.bar.elapsed());
            self.loaded_after.set(Some(loaded_after));
            let elapsed = self.bar.elapsed().saturating_sub(loaded_after).min(self.run_time);
            self.bar.set_message(format!("{done} operations"));
            self.bar.set_length(self.run_time.as_millis() as u64);
            self.bar.set_position(elapsed.as_millis() as u64);
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
