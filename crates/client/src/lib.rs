//! The Rust client: sends each request to the first live replica of its key, and retries it where
//! that is safe.
//!
//! A [`Client`] belongs to one thread, because Cap'n Proto's connections do. It runs in a tokio
//! `LocalRuntime`. Requests that are awaited together travel in one call.
//!
//! ```no_run
//! # async fn example() -> Result<(), quorate_client::ClientError> {
//! use quorate_client::{Client, ClientConfig, ReadOptions, EncodedWriteMode, WriteOptions};
//! use quorate_core::{Key, Payload};
//!
//! let client = Client::connect(ClientConfig::new("127.0.0.1:7400")?).await?;
//! let key = Key::new(b"carts", b"ann")?;
//! client.put(&key, Payload::Value("milk".into()), EncodedWriteMode::Overwrite { seen: "".into() }, &WriteOptions::default()).await?;
//! let read = client.get(&key, &ReadOptions::default()).await?;
//! assert_eq!(read.siblings[0].value, "milk");
//! # Ok(())
//! # }
//! ```

mod attempts;
mod client;
mod config;
mod routes;
pub mod system;

pub use client::{Client, ReadOptions, ScanOptions, WriteOptions};
pub use config::{ClientConfig, ClientError};
/// Types of requests and replies.
pub use quorate_core as core;
pub use quorate_core::request::EncodedWriteMode;
