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
        /// Its configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Work with configurations.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Read a key. Exit code 1 if it is absent.
    Get(Get),
    /// Write a key.
    Put(Put),
    /// Delete a key.
    Delete(Delete),
    /// List a bucket's keys and values.
    Scan(Scan),
    /// Show where a key lies and what each replica holds.
    Explain(Explain),
    /// Show the nodes as one of them sees the cluster.
    Status(Status),
    /// Show how the ring's partitions are spread, or where a key lies.
    Ring(Ring),
    /// Compare a node's replicas with the others' and mend what differs; or show how far that is.
    #[command(subcommand)]
    Repair(RepairCommand),
    /// See and change who is in the cluster and what they hold.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// See what buckets' keys are held to, and give a bucket a definition of its own.
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// See the layout, and past ones.
    #[command(subcommand)]
    Layout(LayoutCommand),
    /// Prepare a node for being stopped.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Measure a cluster under load.
    Bench(Bench),
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

/// Runs the command that the arguments name, the program's name first.
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
    // Variables that are not text are skipped: none of Quorate's has such a name.
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
