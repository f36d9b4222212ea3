//! The operating system's clocks, randomness and TCP. No other module uses them directly; a
//! simulation supplies its own.
#![allow(clippy::disallowed_methods)]

use std::io;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use quorate_core::NodeId;
use quorate_core::environment::Environment;
use quorate_rpc::network::{Duplex, Network};
use tokio::net::TcpStream;

/// The operating system's clocks and randomness.
pub struct System {
    started: Instant,
}

impl System {
    /// Creates the environment. Its monotonic time counts from now.
    #[allow(clippy::new_without_default)]
    pub fn new() -> System {
        System { started: Instant::now() }
    }
}

impl Environment for System {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Reads each number from the kernel, so that a forked child never repeats its parent's
    /// numbers.
    fn random(&self) -> u64 {
        getrandom::u64().expect("the operating system supplies random numbers")
    }
}

/// Plain TCP.
pub struct Tcp;

#[async_trait(?Send)]
impl Network for Tcp {
    async fn connect(&self, address: &str, _peer: Option<NodeId>) -> io::Result<Duplex> {
        duplex(TcpStream::connect(address).await?)
    }
}

/// Splits a TCP stream into its two directions, and turns Nagle's delay off.
///
/// # Errors
/// If the socket is closed.
pub fn duplex(stream: TcpStream) -> io::Result<Duplex> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok(Duplex { read: Box::new(read), write: Box::new(write) })
}
