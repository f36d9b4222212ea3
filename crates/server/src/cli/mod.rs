//! The command line: the node and its tools.

/// Prints a line. A reader that has gone (`| head`) is no failure.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

mod bench;
mod bucket;
mod cluster;
mod exit;
mod inspect;
mod keys;
mod repair;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_client::{Client, ClientConfig};

use crate::config::Config;
use crate::registry::Registry;
use crate::serve;
use exit::Failure;

/// Quorate: a leaderless, replicated key-value store.
#[derive(Parser)]
#[command(name = "quorate", version, after_help = exit::HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    Serve {
        /// Its configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Work with configurations.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Read a key. Exit code 1 if it is absent.
    Get(keys::Get),
    /// Write a key.
    Put(keys::Put),
    /// Delete a key.
    Delete(keys::Delete),
    /// List a bucket's keys and values.
    Scan(keys::Scan),
    /// Show where a key lies and what each replica holds.
    Explain(inspect::Explain),
    /// Show the nodes as one of them sees the cluster.
    Status(inspect::Status),
    /// Show how the ring's partitions are spread, or where a key lies.
    Ring(inspect::Ring),
    /// Compare a node's replicas with the others' and mend what differs; or show how far that is.
    #[command(subcommand)]
    Repair(repair::RepairCommand),
    /// See and change who is in the cluster and what they hold.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// See what buckets' keys are held to, and give a bucket a definition of its own.
    #[command(subcommand)]
    Bucket(bucket::BucketCommand),
    /// See the layout, and past ones.
    #[command(subcommand)]
    Layout(cluster::LayoutCommand),
    /// Prepare a node for being stopped.
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Measure a cluster under load.
    Bench(bench::Bench),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration, and say what is wrong with it.
    Check {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// How to reach the cluster and how to print.
#[derive(Args)]
struct Connection {
    /// Nodes to begin with: host:port,host:port,…
    #[arg(long, env = "QUORATE_URL", default_value = "127.0.0.1:7400", value_name = "URL")]
    nodes: String,
    /// How long the operation may take, in seconds, retries included.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    timeout: f64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Print JSON: the same as `--output json`.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Connection {
    fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }

    fn is_json(&self) -> bool {
        self.output() == Output::Json
    }

    fn config(&self) -> Result<ClientConfig, Failure> {
        let mut config = ClientConfig::new(&self.nodes)?;
        if !(self.timeout > 0.0 && self.timeout <= 3600.0) {
            return Err(Failure::usage(format!(
                "--timeout {}: use more than 0 and at most 3600 seconds",
                self.timeout
            )));
        }
        config.timeout = std::time::Duration::from_secs_f64(self.timeout);
        Ok(config)
    }

    async fn connect(&self) -> Result<std::rc::Rc<Client>, Failure> {
        Ok(Client::connect(self.config()?).await?)
    }
}

pub(crate) fn run<T: Into<OsString> + Clone>(
    registry: Registry,
    arguments: impl IntoIterator<Item = T>,
) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let outcome = dispatch(arguments.command, &registry);
    // Inside another program (the Python command) nobody flushes it at the end.
    let _ = std::io::stdout().flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command, registry: &Registry) -> Result<(), Failure> {
    let load = |file: &PathBuf| {
        // What is not text can't be one of ours.
        let environment =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Config::load(file, environment, registry)
    };
    match command {
        Command::Serve { config } => Ok(serve::serve(load(&config)?, registry)?),
        Command::Config(ConfigCommand::Check { file }) => {
            let config = load(&file)?;
            say!(
                "{}: valid. Node {} of cluster {:?}, {}, {} partitions, {} replicas, storage {}.",
                file.display(),
                config.node.name,
                config.cluster.id,
                match &config.layout {
                    Some(layout) => format!("{} members", layout.members().len()),
                    None => format!("members found by {}", config.membership.name),
                },
                config.cluster.partitions,
                config.replicas,
                config.storage.name
            );
            Ok(())
        }
        Command::Get(get) => block_on(get.run()),
        Command::Put(put) => block_on(put.run()),
        Command::Delete(delete) => block_on(delete.run()),
        Command::Scan(scan) => block_on(scan.run()),
        Command::Explain(explain) => block_on(explain.run()),
        Command::Status(status) => block_on(status.run()),
        Command::Ring(ring) => block_on(ring.run()),
        Command::Repair(repair) => block_on(repair.run()),
        Command::Cluster(cluster) => block_on(cluster.run()),
        Command::Bucket(bucket) => block_on(bucket.run()),
        Command::Layout(layout) => block_on(layout.run()),
        Command::Node(node) => block_on(node.run()),
        Command::Bench(bench) => bench.run(),
    }
}

fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(|error| Failure::usage(format!("cannot start the event loop: {error}")))?;
    runtime.block_on(future)
}

fn print_json(value: &serde_json::Value) {
    say!("{value:#}");
}

fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(header.to_vec());
    table
}

/// Bytes for people: text if it is text, escaped otherwise.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
