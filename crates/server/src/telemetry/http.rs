//! The small HTTP port that metrics are read from: `/metrics`, `/livez`, `/readyz`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_node::Shared;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::metrics::Metrics;

/// The HTTP port. A thread of its own serves the port until this value is dropped. The port answers
/// even while the node has no layout yet.
pub(crate) struct HttpPort {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Largest head of a request, in bytes. A request with a larger head is refused.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// Longest time from the accept of a connection to the end of its reply. After it, the connection
/// is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of open connections. At the limit, the port closes each new connection.
const MAX_CONNECTIONS: usize = 16;
/// Delay between a failed attempt to accept a connection and the next attempt.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reference to the node's state, empty until the node has a layout. It is weak, so that the HTTP
/// port does not keep the state in memory.
pub(crate) type StartedNode = Arc<OnceLock<Weak<Shared>>>;

impl HttpPort {
    /// Binds the port, without serving it yet.
    pub(crate) fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Answers the HTTP requests of a port that is bound already.
    pub(crate) fn open(
        listener: std::net::TcpListener,
        metrics: Arc<Metrics>,
        node: StartedNode,
    ) -> std::io::Result<HttpPort> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    biased;
                    _ = stopped => {}
                    () = serve(listener, metrics, node) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("quorate-http".into()).spawn(serving)?;
        Ok(HttpPort { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for HttpPort {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, metrics: Arc<Metrics>, node: StartedNode) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (metrics, node) = (metrics.clone(), node.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &metrics, &node)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics, node: &StartedNode) -> std::io::Result<()> {
    let Some(head) = read_head(&mut stream).await? else {
        return reply(
            &mut stream,
            "400 Bad Request",
            "text/plain",
            "send one GET request of at most 8 KiB\n",
        )
        .await;
    };
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let shared = node.get().and_then(Weak::upgrade);
    match (method, path.split('?').next().unwrap_or_default()) {
        ("GET", "/livez") => reply(&mut stream, "200 OK", "text/plain", "alive\n").await,
        ("GET", "/metrics" | "/readyz") if shared.is_none() => {
            let why = "this node has not found its cluster yet, or is about to stop\n";
            reply(&mut stream, "503 Service Unavailable", "text/plain", why).await
        }
        ("GET", "/metrics") => {
            let page = shared.map_or_else(String::new, |shared| metrics.page(&shared));
            reply(&mut stream, "200 OK", OPENMETRICS, &page).await
        }
        ("GET", "/readyz") => match shared.and_then(|shared| not_ready(&shared)) {
            None => reply(&mut stream, "200 OK", "text/plain", "ready\n").await,
            Some(why) => reply(&mut stream, "503 Service Unavailable", "text/plain", &why).await,
        },
        ("GET", _) => {
            let known = "known: /metrics, /livez, /readyz\n";
            reply(&mut stream, "404 Not Found", "text/plain", known).await
        }
        _ => reply(&mut stream, "405 Method Not Allowed", "text/plain", "use GET\n").await,
    }
}

/// Reads the head of a request. Returns `None` if the head is too long, or if the connection ends
/// within the head.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let count = stream.read(&mut part).await?;
        head.extend_from_slice(&part[..count]);
        if count == 0 || head.len() > MAX_REQUEST_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// Lists the reasons for which the node does not answer all requests; `None` if it is ready.
fn not_ready(shared: &Shared) -> Option<String> {
    let upkeep = quorate_node::upkeep(shared);
    let mut reasons = String::new();
    if upkeep.recovering > 0 {
        let _ =
            writeln!(reasons, "recovering: no reads of {} partitions are answered yet", upkeep.recovering);
    }
    if let Some(reason) = upkeep.clock_problem {
        let _ = writeln!(reasons, "this node coordinates no writes: {reason}");
    }
    if shared.view().removed {
        let _ = writeln!(reasons, "this node was taken out of the cluster while it was down");
    }
    if shared.is_drained() {
        let _ = writeln!(reasons, "drained: this node accepts no requests of clients until it is restarted");
    }
    (!reasons.is_empty()).then_some(reasons)
}

async fn reply(stream: &mut TcpStream, status: &str, content_type: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
