//! The command `bench`: its arguments, and the printed result.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use quorate_client::{Client, ReadOptions, WriteOptions};
use quorate_core::key::{BucketName, MAX_VALUE_BYTES};
use quorate_core::quorum::QuorumSize;
use serde_json::json;

use super::drive::run;
use super::ledger::MIN_VERIFIED_BYTES;
use super::plan::Plan;
use super::progress::{Bar, Progress};
use super::report::{Report, extend};
use super::workload::{Distribution, Workload};
use crate::cli::connection::{Connection, block_on};
use crate::cli::exit::Failure;
use crate::cli::output::{Output, print_json, print_line, table};

/// Arguments of `bench`.
#[derive(Args)]
pub(crate) struct Bench {
    /// Mix of reads and writes. All mixes but put write every key once before the measurement. The
    /// mixes a, b and c are the YCSB workloads of that name.
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Size of each value, in bytes.
    #[arg(long, default_value_t = 100, value_name = "BYTES")]
    value_bytes: usize,
    /// Number of different keys.
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    keys: u32,
    /// Frequency of each key. Default: zipfian for the workloads a, b and c, as
    /// YCSB defines them, otherwise uniform.
    #[arg(long, value_enum)]
    distribution: Option<Distribution>,
    /// Total number of connections, rounded up to whole clients. A client holds one connection to
    /// each node, and sends a request to the key's first replica.
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    connections: usize,
    /// Number of operations under way over all connections. With --rate: the largest number.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    in_flight: usize,
    /// Duration of the measurement.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// Duration of the warm-up: load that runs before the measurement and is not measured.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    warm_up: f64,
    /// Schedule this many operations per second, even if earlier ones are unanswered (an open
    /// loop). The latency counts from the scheduled time. Default: send the next operation when
    /// one is answered (a closed loop).
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Number of replicas that must answer a read: a number, "quorum" or "all". Default: the
    /// bucket's r.
    #[arg(long)]
    r: Option<QuorumSize>,
    /// Number of replicas that must acknowledge a write: a number, "quorum" or "all". Default: the
    /// bucket's w.
    #[arg(long)]
    w: Option<QuorumSize>,
    /// Bucket to use. Its keys are overwritten.
    #[arg(long, default_value = "bench", value_name = "NAME")]
    bucket: String,
    /// Check every value that is read: it was written to this key, and it is not older than the
    /// last write that was acknowledged before the read began. The exit code is 9 if a value is
    /// wrong or missing. Needs R + W > N, and no other writer of these keys. With --skip-load,
    /// values of earlier runs are accepted.
    #[arg(long)]
    verify: bool,
    /// Do not write the keys before the measurement, because an earlier run has written them.
    #[arg(long)]
    skip_load: bool,
    /// Number of threads of the load generator.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    threads: usize,
    /// Seed of the random choice of keys and operations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    connection: Connection,
}

const MAX_IN_FLIGHT: usize = 65_536;
const MAX_CONNECTIONS: usize = 10_000;
const MAX_RATE: f64 = 10_000_000.0;

impl Bench {
    pub(crate) fn run(self) -> Result<(), Failure> {
        self.check()?;
        let mut nodes = 0;
        block_on(async {
            let client = Client::connect(self.connection.config()?).await?;
            nodes = client.layout().await?.members().len();
            Ok(())
        })?;
        let plan = self.plan(nodes)?;
        let progress = Arc::new(Progress::default());
        let bar = Bar::new(&plan, progress.clone());
        let report = run(&plan, &progress, || bar.tick());
        bar.end();
        let report = report?;
        let connections = plan.clients * nodes;
        match self.connection.output() {
            Output::Json => print_json(&self.json(&plan, connections, &report)),
            Output::Table => self.print(&plan, connections, &report),
        }
        if self.verify && !report.wrong.is_empty() {
            return Err(Failure::Verification(report.wrong));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        BucketName::new(&self.bucket)?;
        let whole = |name: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Failure::usage(format!("--{name} {value}: use {least} to {most}")))
        };
        whole("value-bytes", self.value_bytes, 0, MAX_VALUE_BYTES)?;
        whole("keys", self.keys as usize, 1, u32::MAX as usize)?;
        whole("connections", self.connections, 1, MAX_CONNECTIONS)?;
        whole("in-flight", self.in_flight, 1, MAX_IN_FLIGHT)?;
        whole("threads", self.threads, 1, self.in_flight)?;
        let seconds = |name: &str, value: f64, least: f64| {
            if value >= least && value <= 86_400.0 {
                return Ok(());
            }
            Err(Failure::usage(format!("--{name} {value}: use {least} to 86400")))
        };
        seconds("seconds", self.seconds, 0.1)?;
        seconds("warm-up", self.warm_up, 0.0)?;
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= MAX_RATE)
        {
            return Err(Failure::usage(format!("--rate {rate}: use more than 0 and at most {MAX_RATE}")));
        }
        if self.verify && self.workload == Workload::Put {
            return Err(Failure::usage("--verify with --workload put: it reads nothing; use a, b, c or get"));
        }
        if self.verify && self.value_bytes < MIN_VERIFIED_BYTES {
            return Err(Failure::usage(format!(
                "--verify with --value-bytes {}: a value that can be checked has at least {MIN_VERIFIED_BYTES} bytes",
                self.value_bytes
            )));
        }
        if self.verify && u64::from(self.keys) <= self.in_flight as u64 {
            return Err(Failure::usage(format!(
                "--verify with --keys {} and --in-flight {}: use more keys than operations in flight, because writes \
                 of one key wait for each other",
                self.keys, self.in_flight
            )));
        }
        Ok(())
    }

    fn plan(&self, nodes: usize) -> Result<Plan, Failure> {
        let clients = self.connections.div_ceil(nodes.max(1)).max(self.threads).min(self.in_flight);
        Ok(Plan {
            client: self.connection.config()?,
            bucket: self.bucket.clone(),
            workload: self.workload,
            distribution: self.distribution.unwrap_or(self.workload.default_distribution()),
            value_bytes: self.value_bytes,
            keys: self.keys,
            clients,
            threads: self.threads,
            in_flight: self.in_flight,
            warm_up: Duration::from_secs_f64(self.warm_up),
            measured: Duration::from_secs_f64(self.seconds),
            rate: self.rate,
            read: ReadOptions { r: self.r.unwrap_or_default(), timeout: None },
            write: WriteOptions { w: self.w.unwrap_or_default(), sloppy: None, timeout: None },
            load: self.workload.reads() && !self.skip_load,
            verify: self.verify,
            seed: self.seed,
        })
    }

    fn json(&self, plan: &Plan, connections: usize, report: &Report) -> serde_json::Value {
        let mut document = report.json();
        let mib_per_s = report.ops_per_s() * self.value_bytes as f64 / f64::from(1 << 20);
        let fields = json!({
            "workload": self.workload.name(),
            "value_bytes": self.value_bytes,
            "keys": self.keys,
            "connections": connections,
            "in_flight": self.in_flight,
            "rate": self.rate,
            "verified": self.verify,
            "threads": plan.threads,
            "mib_per_s": (mib_per_s * 10.0).round() / 10.0,
            "wrong": report.wrong,
        });
        extend(&mut document, fields);
        document
    }

    fn print(&self, plan: &Plan, connections: usize, report: &Report) {
        let loop_kind =
            self.rate.map_or("closed loop".to_owned(), |rate| format!("open loop, {rate} due a second"));
        print_line!(
            "{} over {} keys of {} bytes, {connections} connections, {} in flight, {loop_kind}, {} s",
            self.workload.name(),
            self.keys,
            self.value_bytes,
            self.in_flight,
            plan.measured.as_secs_f64()
        );
        print_line!("{:.0} operations a second", report.ops_per_s());
        if report.late > 0 && self.rate.is_some() {
            print_line!(
                "{} operations were answered after the end: the nodes are too slow for this rate, or stalled",
                report.late
            );
        }
        let mut out = table(&["µs", "p50", "p90", "p99", "p99.9", "max"]);
        for (name, latencies) in [("get", &report.reads), ("put", &report.writes)] {
            if latencies.is_empty() {
                continue;
            }
            let at = |quantile| latencies.value_at_quantile(quantile).to_string();
            out.add_row([
                name.to_owned(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                latencies.max().to_string(),
            ]);
        }
        print_line!("{out}");
        if report.errors.is_empty() {
            print_line!("no errors{}", if self.verify { ", every read was correct" } else { "" });
        }
        for (name, count) in &report.errors {
            print_line!("{count} errors: {name}");
        }
    }
}
