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

/// Subcommands of `bucket`.
#[derive(Subcommand)]
pub(super) enum BucketCommand {
    /// Give a bucket its own definition, and wait until all nodes use it. The definition cannot be
    /// changed later.
    Create(Create),
    /// List the buckets that have their own definition, and the bucket "default".
    List(Connection),
    /// Show the definition that a bucket has.
    Show {
        /// Name of the bucket.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Minimum timeout for the creation of a bucket. A shorter `--timeout` is raised to it, because the
/// creation waits for all nodes.
const MIN_CREATE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Create {
    /// Name of the bucket: up to 64 of A-Z a-z 0-9 . _ -
    name: String,
    /// Number of replicas of each key. Default: the layout's number of replicas. If the bucket has
    /// keys already, n cannot change, and r and w must overlap with the old ones.
    #[arg(long)]
    n: Option<u8>,
    /// Number of replies that a read waits for: a number, "quorum" or "all".
    #[arg(long, default_value = "quorum")]
    r: QuorumSize,
    /// Number of acknowledgements that a write waits for: a number, "quorum" or "all".
    #[arg(long, default_value = "quorum")]
    w: QuorumSize,
    /// Conflict resolver: "siblings" (a read shows all concurrent versions), "lww" (only the last
    /// write), or the name of a plugin.
    #[arg(long, default_value = "siblings")]
    resolver: String,
    /// Count only the acknowledgements of the key's replicas. Without it, another node may store
    /// the write for a replica that cannot be reached, and its acknowledgement counts.
    #[arg(long)]
    strict: bool,
    /// Time at which a read repairs replicas that hold less: before its reply (blocking), after it
    /// (background), or never (off).
    #[arg(long, value_enum, default_value_t = Repair::Blocking)]
    read_repair: Repair,
    /// Maximum number of siblings of a key. If a key has this many, a put that replaces none of
    /// them is refused.
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
            print_line!("bucket {name} has no definition of its own: it uses that of \"{DEFAULT_BUCKET}\"")
        }
    }
    let repair = format!("{:?}", definition.read_repair).to_lowercase();
    let rows = [
        ("n", n_of(bucket, report), "replicas of each key"),
        ("r", definition.r.to_string(), "replies that a read waits for"),
        ("w", definition.w.to_string(), "acknowledgements that a write waits for"),
        ("resolver", definition.resolver.clone(), "decides which siblings a read shows"),
        (
            "sloppy",
            definition.sloppy.to_string(),
            "true: a fallback's acknowledgement counts for its replica",
        ),
        ("read_repair", repair, "time at which a read repairs replicas that hold less"),
        ("max_siblings", definition.max_siblings.to_string(), "most siblings of a key"),
        ("max_value_bytes", definition.max_value_bytes.to_string(), "largest value, in bytes"),
    ];
    let mut out = table(&["setting", "value", "meaning"]);
    for (name, value, meaning) in rows {
        out.add_row([name.to_owned(), value, meaning.to_owned()]);
    }
    print_line!("{out}");
    Ok(())
}
