//! The command `bucket`: definitions of buckets.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use quorate_core::BucketDefinition;
use quorate_core::bucket::{DEFAULT_BUCKET, ReadRepair};
use quorate_core::quorum::QuorumSize;
use quorate_core::report::{BucketReport, BucketsReport};

use super::connection::Connection;
use super::exit::Failure;
use super::output::{print_json, print_line, print_report, table};

/// A bucket need not be created: without a definition of its own it goes by that of "default".
#[derive(Subcommand)]
pub(super) enum BucketCommand {
    /// Give a bucket a definition of its own, for good, and wait until all nodes go by it.
    Create(Create),
    /// List the buckets that have a definition, and the default.
    List(Connection),
    /// Show what a bucket's keys are held to.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Least timeout of a creation: telling all nodes takes longer than a read.
const MIN_CREATE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Create {
    /// Its name: up to 64 of A-Z a-z 0-9 . _ -
    name: String,
    /// Replicas a key. Default: as many as the layout has. Only a bucket without keys can get
    /// another number, or an r or w that need not meet those before.
    #[arg(long)]
    n: Option<u8>,
    /// Replicas a read asks: a number, "quorum" or "all".
    #[arg(long, default_value = "quorum")]
    r: QuorumSize,
    /// Acks a write waits for: a number, "quorum" or "all".
    #[arg(long, default_value = "quorum")]
    w: QuorumSize,
    /// What decides between versions that lie side by side: siblings, lww, or a plugin's name.
    #[arg(long, default_value = "siblings")]
    resolver: String,
    /// Let no fallback stand in for a dead replica.
    #[arg(long)]
    strict: bool,
    /// When reads push what they merged to replicas that are behind.
    #[arg(long, value_enum, default_value_t = Repair::Blocking)]
    read_repair: Repair,
    /// How many versions may lie side by side.
    #[arg(long, default_value_t = 100)]
    max_siblings: u32,
    /// Largest value, in bytes.
    #[arg(long, default_value_t = 1024 * 1024)]
    max_value_bytes: u32,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, ValueEnum)]
enum Repair {
    Blocking,
    Background,
    Off,
}

impl Create {
    fn definition(&self) -> BucketDefinition {
        BucketDefinition {
            n: self.n,
            r: self.r,
            w: self.w,
            resolver: self.resolver.clone(),
            sloppy: !self.strict,
            read_repair: match self.read_repair {
                Repair::Blocking => ReadRepair::Blocking,
                Repair::Background => ReadRepair::Background,
                Repair::Off => ReadRepair::Off,
            },
            max_siblings: self.max_siblings,
            max_value_bytes: self.max_value_bytes,
        }
    }
}

impl BucketCommand {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            BucketCommand::Create(create) => {
                let (name, definition) = (create.name.clone(), create.definition());
                let timeout = create.connection.config()?.timeout.max(MIN_CREATE_TIMEOUT);
                let client = create.connection.connect().await?;
                let report = client.create_bucket(&name, definition, timeout).await?;
                print_bucket(&create.connection, &report, &create.name)
            }
            BucketCommand::List(connection) => {
                let report = connection.connect().await?.buckets().await?;
                match connection.is_json() {
                    true => print_report(&report),
                    false => print_list(&report),
                }
                Ok(())
            }
            BucketCommand::Show { name, connection } => {
                print_bucket(&connection, &connection.connect().await?.buckets().await?, &name)
            }
        }
    }
}

fn print_list(report: &BucketsReport) {
    let mut out = table(&["bucket", "n", "r", "w", "resolver", "sloppy", "state"]);
    for (name, bucket) in &report.buckets {
        let definition = &bucket.definition;
        out.add_row([
            name.clone(),
            n_of(bucket, report),
            definition.r.to_string(),
            definition.w.to_string(),
            definition.resolver.clone(),
            definition.sloppy.to_string(),
            state_of(bucket).to_owned(),
        ]);
    }
    print_line!("{out}");
}

fn n_of(bucket: &BucketReport, report: &BucketsReport) -> String {
    bucket.definition.n.map_or_else(|| format!("{} (the layout's)", report.replicas), |n| n.to_string())
}

fn state_of(bucket: &BucketReport) -> &'static str {
    if bucket.ready { "ready" } else { "being created" }
}

fn print_bucket(connection: &Connection, report: &BucketsReport, name: &str) -> Result<(), Failure> {
    quorate_core::BucketName::new(name).map_err(|error| Failure::usage(error.to_string()))?;
    let own = report.buckets.get(name);
    let Some(bucket) = own.or_else(|| report.buckets.get(DEFAULT_BUCKET)) else {
        return Err(Failure::usage(format!("node {} reports no buckets", report.node)));
    };
    if connection.is_json() {
        let mut value = serde_json::to_value(bucket).expect("plain data");
        value["name"] = name.into();
        value["declared"] = own.is_some().into();
        print_json(&value);
        return Ok(());
    }
    let definition = &bucket.definition;
    match own {
        Some(_) => print_line!("bucket {name}, {}", state_of(bucket)),
        None => {
            print_line!("bucket {name} has no definition of its own: it goes by that of \"{DEFAULT_BUCKET}\"")
        }
    }
    let repair = format!("{:?}", definition.read_repair).to_lowercase();
    let rows = [
        ("n", n_of(bucket, report), "replicas a key"),
        ("r", definition.r.to_string(), "replicas a read asks"),
        ("w", definition.w.to_string(), "acks a write waits for"),
        ("resolver", definition.resolver.clone(), "decides between versions that lie side by side"),
        ("sloppy", definition.sloppy.to_string(), "fallbacks stand in for dead replicas"),
        ("read_repair", repair, "when reads push to replicas that are behind"),
        ("max_siblings", definition.max_siblings.to_string(), "versions that may lie side by side"),
        ("max_value_bytes", definition.max_value_bytes.to_string(), "largest value"),
    ];
    let mut out = table(&["rule", "value", "what it says"]);
    for (name, value, what) in rows {
        out.add_row([name.to_owned(), value, what.to_owned()]);
    }
    print_line!("{out}");
    Ok(())
}
