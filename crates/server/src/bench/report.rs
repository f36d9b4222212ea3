//! What a run comes to.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies are kept to this many digits.
const DIGITS: u8 = 3;
/// Longer ones are counted as this long: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// What one thread measured.
pub(crate) struct Report {
    /// Latencies of reads and writes begun while measuring, microseconds. In an open loop from the moment at which the
    /// operation was due.
    pub(crate) reads: Histogram<u64>,
    pub(crate) writes: Histogram<u64>,
    /// Operations that succeeded within the measured time.
    pub(crate) operations: u64,
    /// Operations begun or due within it that succeeded after its end.
    pub(crate) late: u64,
    /// `operations` of each thread of the generator.
    pub(crate) by_thread: Vec<u64>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    /// The first few wrong reads, in words.
    pub(crate) wrong: Vec<String>,
    /// Seconds measured.
    pub(crate) seconds: f64,
}

/// Most wrong reads that are told in words.
const MAX_TOLD: usize = 5;

impl Report {
    pub(crate) fn new(seconds: f64) -> Report {
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

    pub(crate) fn error(&mut self, name: &'static str) {
        *self.errors.entry(name).or_default() += 1;
    }

    pub(crate) fn wrong(&mut self, name: &'static str, detail: String) {
        self.error(name);
        if self.wrong.len() < MAX_TOLD {
            self.wrong.push(detail);
        }
    }

    pub(crate) fn add(&mut self, other: Report) {
        self.reads.add(&other.reads).expect("of the same bounds");
        self.writes.add(&other.writes).expect("of the same bounds");
        self.operations += other.operations;
        self.late += other.late;
        self.by_thread.extend(other.by_thread);
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        let room = MAX_TOLD.saturating_sub(self.wrong.len());
        self.wrong.extend(other.wrong.into_iter().take(room));
    }

    pub(crate) fn ops_per_s(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// Reads and writes together.
    pub(crate) fn all(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        all.add(&self.writes).expect("of the same bounds");
        all
    }

    /// The object that scripts read.
    pub(crate) fn json(&self) -> Value {
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
pub(crate) fn extend(object: &mut Value, fields: Value) {
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
