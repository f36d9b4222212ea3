//! The connection of a command to the cluster.

use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use quorate_client::{Client, ClientConfig};
use quorate_core::report::ClusterReport;
use quorate_core::request::ClusterRequest;

use super::exit::Failure;
use super::output::Output;

/// Arguments of all commands that connect to a cluster: addresses, timeout and output format.
#[derive(Args)]
pub(crate) struct Connection {
    /// Addresses of some nodes: host:port,host:port,… The command finds the other nodes through
    /// them.
    #[arg(long, env = "QUORATE_URL", default_value = "127.0.0.1:7400", value_name = "URL")]
    nodes: String,
    /// Longest time of each request, in seconds, retries included.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    timeout: f64,
    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Print JSON: the same as `--output json`.
    #[arg(long)]
    json: bool,
}

impl Connection {
    pub(super) fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }

    pub(super) fn is_json(&self) -> bool {
        self.output() == Output::Json
    }

    pub(super) fn config(&self) -> Result<ClientConfig, Failure> {
        let mut config = ClientConfig::new(&self.nodes)?;
        if !(self.timeout > 0.0 && self.timeout <= 3600.0) {
            return Err(Failure::usage(format!(
                "--timeout {}: use more than 0 and at most 3600 seconds",
                self.timeout
            )));
        }
        config.timeout = Duration::from_secs_f64(self.timeout);
        Ok(config)
    }

    pub(super) async fn connect(&self) -> Result<Rc<Client>, Failure> {
        Ok(Client::connect(self.config()?).await?)
    }

    /// Connects to the node at `address` only, and not to the other nodes of the layout.
    pub(super) async fn connect_to_node(&self, address: &str) -> Result<Rc<Client>, Failure> {
        let timeout = self.config()?.timeout;
        let mut config = ClientConfig::new(address)?;
        config.timeout = timeout;
        config.follow = false;
        Ok(Client::connect(config).await?)
    }

    /// Sends one request about the cluster, and returns the cluster's state after it.
    pub(super) async fn cluster_report(&self, request: ClusterRequest) -> Result<ClusterReport, Failure> {
        Ok(self.connect().await?.cluster_as(request).await?)
    }
}

/// Runs a command on an event loop of its own.
pub(super) fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(|error| Failure::usage(format!("cannot start the event loop: {error}")))?;
    runtime.block_on(future)
}
