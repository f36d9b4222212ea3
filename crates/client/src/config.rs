//! The client's configuration, and its error type.

use std::time::Duration;

use quorate_core::RequestError;

/// Addresses of a cluster, and the timeout of its operations.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Addresses of the nodes to contact first, "host:port" each.
    pub nodes: Vec<String>,
    /// True if the client learns the other nodes from the layout, and sends requests for a key to a
    /// replica of that key. Otherwise the client only contacts the nodes in `nodes`.
    pub follow: bool,
    /// Longest time of an operation, retries included. Default 2 s.
    pub timeout: Duration,
}

impl ClientConfig {
    /// Creates the default configuration for "host:port,host:port,…".
    ///
    /// # Errors
    /// `InvalidRequest`, with the part that is no address.
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

/// Error of an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The error that a node returned, or the error that the client derived from several attempts.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No node accepted a connection; nothing was sent.
    #[error("no node can be reached: {detail}")]
    Unreachable {
        /// Addresses, each with its error.
        detail: String,
    },
}
