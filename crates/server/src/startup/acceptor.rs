//! The loop that accepts connections.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::signals::StopSignals;
use super::worker::Worker;
use crate::config::{Config, ConfigError};

/// Delay between a failed attempt to accept a connection and the next attempt.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Announces that the node is ready, and hands connections to the workers in turn, until SIGTERM or
/// SIGINT. `open_connections` counts the connections of all workers.
pub(super) async fn accept_until_stopped(
    listener: TcpListener,
    workers: &[Worker],
    open_connections: &AtomicUsize,
    config: &Config,
) -> Result<(), ConfigError> {
    let failed = |error: std::io::Error| ConfigError::new(format!("cannot accept connections: {error}"));
    let mut stop = StopSignals::catch().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    announce(config, listener.local_addr().map_err(failed)?);
    let mut next = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.received() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if open_connections.load(Ordering::Relaxed) >= config.node.max_connections => {
                tracing::warn!(
                    limit = config.node.max_connections,
                    "connection closed: the limit of connections is reached ([node] max_connections)"
                );
                drop(stream);
            }
            Ok((stream, _)) => {
                if let Ok(stream) = stream.into_std() {
                    workers[next % workers.len()].serve(stream);
                    next += 1;
                }
            }
            // The usual reason is that the process has no free file descriptor. Other connections
            // may close during the delay, and free some.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Writes the readiness line, the only line that a node writes to stdout.
fn announce(config: &Config, address: SocketAddr) {
    tracing::info!(name = config.node.name, %address, storage = config.storage.name, "serving");
    let mut stdout = std::io::stdout();
    let _ = writeln!(
        stdout,
        "quorate ready name={} address={address} pid={}",
        config.node.name,
        std::process::id()
    );
    let _ = stdout.flush();
}
