//! How to find a cluster, and what can go wrong besides what a node answers.

use std::time::Duration;

use quorate_core::RequestError;

/// Where a cluster is and how long to wait for it.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Nodes to begin with, "host:port" each.
    pub nodes: Vec<String>,
    /// Learn the other nodes and route by key; otherwise only talk to the named ones.
    pub follow: bool,
    /// How long an operation may take, retries included. Default 2 s.
    pub timeout: Duration,
}

impl ClientConfig {
    /// The default configuration for "host:port,host:port,…".
    ///
    /// # Errors
    /// `InvalidRequest` naming the part that is no address.
    pub fn new(nodes: &str) -> Result<ClientConfig, ClientError> {
        let nodes: Vec<String> =
            nodes.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
        if nodes.is_empty() {
            return Err(RequestError::invalid("no node named: use \"host:port,host:port,…\"").into());
        }
        for node in &nodes {
            let valid = node.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if !valid {
                let detail = format!("address {node:?}: use \"host:port\", for example \"127.0.0.1:7400\"");
                return Err(RequestError::InvalidRequest { detail }.into());
            }
        }
        Ok(ClientConfig { nodes, follow: true, timeout: Duration::from_secs(2) })
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// What a node answered, or what is known after several attempts.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No node could be connected to: nothing was sent.
    #[error("no node can be reached: {detail}")]
    Unreachable {
        /// Each address and what happened there.
        detail: String,
    },
}
