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

/// Measures a cluster: operations a second and latencies, under a load that you choose.
#[derive(Args)]
pub(crate) struct Bench {
    /// What to do. get and the YCSB workloads a (half reads), b (95 % reads) and c (reads) load
    /// their keys first.
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Bytes of a value.
    #[arg(long, default_value_t = 100, value_name = "BYTES")]
    value_bytes: usize,
    /// How many different keys.
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    keys: u32,
    /// How often each key is used. Default: zipfian for a, b and c, else uniform.
    #[arg(long, value_enum)]
    distribution: Option<Distribution>,
    /// Connections in all, rounded up to whole clients: a client holds one to each node, and sends
    /// to a key's first replica.
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    connections: usize,
    /// Operations in flight over all connections. With --rate: at most.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    in_flight: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// How long to run before measuring.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    warm_up: f64,
    /// Open loop: this many operations a second are due, and latencies count from then. Default:
    /// closed loop.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Replicas that must answer a read: a number, quorum or all. Default: the bucket's.
    #[arg(long)]
    r: Option<QuorumSize>,
    /// Replicas that must ack a write: a number, quorum or all. Default: the bucket's.
    #[arg(long)]
    w: Option<QuorumSize>,
    /// The bucket to work in. Its keys are overwritten.
    #[arg(long, default_value = "bench", value_name = "NAME")]
    bucket: String,
    /// Check every value read: that it was written, to this key, and is not older than what was
    /// acked before the read began. Exit code 9 if one is wrong or missing. Needs R + W > N, and
    /// the keys to itself. With --skip-load only what this run writes is known: earlier writes pass
    /// as they are.
    #[arg(long)]
    verify: bool,
    /// Do not load the keys: an earlier run did.
    #[arg(long)]
    skip_load: bool,
    /// Threads of the generator.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    threads: usize,
    /// Seed of the choice of keys and operations.
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
                "--verify with --value-bytes {}: a value that can be checked has at least {MIN_VERIFIED_BYTES}",
                self.value_bytes
            )));
        }
        if self.verify && u64::from(self.keys) <= self.in_flight as u64 {
            return Err(Failure::usage(format!(
                "--verify with --keys {} and --in-flight {}: writes of one key take turns, use more keys than that",
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
                "{} were answered after the end: the nodes do not keep up with this rate, or stalled",
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
            print_line!("no errors{}", if self.verify { ", every read right" } else { "" });
        }
        for (name, count) in &report.errors {
            print_line!("{count} errors: {name}");
        }
    }
}
