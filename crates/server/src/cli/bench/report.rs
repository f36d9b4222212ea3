//! The result of a run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Measurements of one thread, or of all threads together.
pub(super) struct Report {
    /// Latencies of reads begun while measuring, in microseconds. In an open loop they count from the
    /// time at which the operation was due.
    pub(super) reads: Histogram<u64>,
    /// Latencies of writes begun while measuring, in microseconds, counted as in `reads`.
    pub(super) writes: Histogram<u64>,
    /// Operations that succeeded within the measured time.
    pub(super) operations: u64,
    /// Operations that were begun or due within the measured time, and that succeeded after its
    /// end.
    pub(super) late: u64,
    /// `operations` of each thread of the generator.
    pub(super) by_thread: Vec<u64>,
    pub(super) errors: BTreeMap<&'static str, u64>,
    /// Descriptions of the first few wrong reads: they missed an acked write, or returned a value that
    /// no write of the key wrote.
    pub(super) wrong: Vec<String>,
    /// Duration of the measured time, in seconds.
    pub(super) seconds: f64,
}

/// Significant digits of a recorded latency.
const DIGITS: u8 = 3;
/// Longest latency that is recorded: one hour, in microseconds. A longer latency is recorded as one
/// hour.
const LONGEST_US: u64 = 3_600_000_000;
/// Largest number of wrong reads that a report describes.
const MAX_DESCRIPTIONS: usize = 5;

impl Report {
    pub(super) fn new(seconds: f64) -> Report {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("valid bounds");
        Report {
            reads: histogram(),
            writes: histogram(),
            operations: 0,
            late: 0,
            by_thread: Vec::new(),
            errors: BTreeMap::new(),
            wrong: Vec::new(),
            seconds,
        }
    }

    /// Counts an error.
    pub(super) fn error(&mut self, name: &'static str) {
        *self.errors.entry(name).or_default() += 1;
    }

    /// Counts and describes a wrong read.
    pub(super) fn wrong(&mut self, name: &'static str, detail: String) {
        self.error(name);
        if self.wrong.len() < MAX_DESCRIPTIONS {
            self.wrong.push(detail);
        }
    }

    /// Adds the measurements of another thread.
    pub(super) fn add(&mut self, other: Report) {
        self.reads.add(&other.reads).expect("of the same bounds");
        self.writes.add(&other.writes).expect("of the same bounds");
        self.operations += other.operations;
        self.late += other.late;
        self.by_thread.extend(other.by_thread);
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        let remaining = MAX_DESCRIPTIONS.saturating_sub(self.wrong.len());
        self.wrong.extend(other.wrong.into_iter().take(remaining));
    }

    pub(super) fn ops_per_s(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// Returns the latencies of reads and writes together.
    fn all(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        all.add(&self.writes).expect("of the same bounds");
        all
    }

    /// Encodes the report as the object that scripts read.
    pub(super) fn json(&self) -> Value {
        let all = self.all();
        let mut report = percentiles(&all);
        let fields = json!({
            "ops_per_s": (self.ops_per_s() * 10.0).round() / 10.0,
            "operations": self.operations,
            "late": self.late,
            "operations_by_thread": self.by_thread,
            "seconds": self.seconds,
            "errors": self.errors,
        });
        extend(&mut report, fields);
        if !self.reads.is_empty() && !self.writes.is_empty() {
            extend(&mut report, json!({ "get": percentiles(&self.reads), "put": percentiles(&self.writes) }));
        }
        report
    }
}

/// Adds one object's fields to another.
pub(super) fn extend(object: &mut Value, fields: Value) {
    if let (Value::Object(object), Value::Object(fields)) = (object, fields) {
        object.extend(fields);
    }
}

fn percentiles(latencies: &Histogram<u64>) -> Value {
    json!({
        "p50_us": latencies.value_at_quantile(0.5),
        "p90_us": latencies.value_at_quantile(0.9),
        "p99_us": latencies.value_at_quantile(0.99),
        "p999_us": latencies.value_at_quantile(0.999),
        "max_us": latencies.max(),
        "mean_us": (latencies.mean() * 10.0).round() / 10.0,
    })
}
