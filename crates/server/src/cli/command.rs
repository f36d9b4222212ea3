//! The `quorate` command and its subcommands.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::bench::Bench;
use super::bucket::BucketCommand;
use super::cluster::ClusterCommand;
use super::connection::block_on;
use super::exit::{EXIT_CODES, Failure};
use super::explain::Explain;
use super::keys::{Delete, Get, Put, Scan};
use super::layout::LayoutCommand;
use super::node::NodeCommand;
use super::output::print_line;
use super::repair::RepairCommand;
use super::ring::Ring;
use super::status::Status;
use crate::config::{Config, ConfigError};
use crate::registry::Registry;
use crate::startup::serve;

/// Quorate: a leaderless, replicated key-value store.
#[derive(Parser)]
#[command(name = "quorate", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    Serve {
        /// Configuration file of the node.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Read a key. The exit code is 1 if the key is absent.
    Get(Get),
    /// Write a key.
    Put(Put),
    /// Delete a key.
    Delete(Delete),
    /// List the keys and values of a bucket.
    Scan(Scan),
    /// Show the replicas of a key, and the versions that each replica holds.
    Explain(Explain),
    /// Show the state of the cluster and of its nodes, as one node sees it.
    Status(Status),
    /// Show the number of partitions that each node holds. With --key, show also a key's replicas.
    Ring(Ring),
    /// Compare the replicas of nodes and repair differences (anti-entropy).
    ///
    /// Nodes do this by themselves: at intervals, and when a node comes back. These commands start
    /// it now, and show its progress.
    #[command(subcommand)]
    Repair(RepairCommand),
    /// Show and change the members of the cluster and their shares of the data.
    ///
    /// Changes are staged one by one. `plan` shows the data that they would move, `commit` makes
    /// them the new layout, `clear` withdraws them. Clients read and write meanwhile.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show the definitions of buckets, and give a bucket its own definition.
    ///
    /// A definition sets the replicas, quorums, conflict resolver and limits of a bucket's keys. A
    /// bucket need not be created: without its own definition it uses that of the bucket "default".
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Show the current layout or past layouts: members, and the partitions that each holds.
    #[command(subcommand)]
    Layout(LayoutCommand),
    /// Prepare a node for a planned stop: it refuses new requests of clients, and finishes the
    /// running ones.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Measure the throughput and the latencies of a cluster under load.
    Bench(Bench),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration file without starting a node. Prints the first error and its remedy.
    Check {
        /// Configuration file to check.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs the command that the arguments name. The first argument is the program's name.
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
    // The Python command also calls this function, and its process may end without a flush of
    // Rust's stdout.
    let _ = std::io::stdout().flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command, registry: &Registry) -> Result<(), Failure> {
    match command {
        Command::Serve { config } => Ok(serve(load_config(&config, registry)?, registry)?),
        Command::Config(ConfigCommand::Check { file }) => check_config(&file, registry),
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

fn load_config(file: &Path, registry: &Registry) -> Result<Config, ConfigError> {
    // Variables that are not valid UTF-8 are skipped. No variable of Quorate has such a name.
    let environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Config::load(file, environment, registry)
}

fn check_config(file: &Path, registry: &Registry) -> Result<(), Failure> {
    let config = load_config(file, registry)?;
    print_line!(
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
