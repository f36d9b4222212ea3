//! The commands on keys: `get`, `put`, `delete`, `scan`.

use std::io::{Read, Write};

use bytes::Bytes;
use clap::Args;
use quorate_client::{EncodedWriteMode, ReadOptions, ScanOptions, WriteOptions};
use quorate_core::key::BucketName;
use quorate_core::quorum::QuorumSize;
use quorate_core::request::{PutReply, Receipt, ScanEntry, Sibling};
use quorate_core::{Key, NodeId, Payload};
use serde_json::json;

use super::connection::Connection;
use super::exit::Failure;
use super::output::{Output, print_json, print_line, printable, table};

/// A key in a bucket.
#[derive(Args)]
pub(super) struct KeyArguments {
    /// Name of the bucket.
    bucket: String,
    /// The key, as text.
    key: String,
}

impl KeyArguments {
    pub(super) fn key(&self) -> Result<Key, Failure> {
        Ok(Key::new(self.bucket.as_bytes(), self.key.as_bytes())?)
    }
}

#[derive(Args)]
pub(super) struct Get {
    #[command(flatten)]
    arguments: KeyArguments,
    /// Number of replicas that must answer: a number, "quorum" or "all". Default: the bucket's r.
    #[arg(long)]
    r: Option<QuorumSize>,
    /// Print only the bytes of the value. It is an error if the key has several siblings.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Get {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = self.arguments.key()?;
        let client = self.connection.connect().await?;
        let read = client.get(&key, &ReadOptions { r: self.r.unwrap_or_default(), timeout: None }).await?;
        if self.connection.is_json() {
            print_json(&json!({
                "key": printable(key.bytes()),
                "siblings": read.siblings.iter().map(sibling_json).collect::<Vec<_>>(),
                "context": hex(&read.context),
                "receipt": receipt_json(&read.receipt),
            }));
        } else if self.raw {
            if read.siblings.len() > 1 {
                return Err(Failure::usage(format!(
                    "the key has {} siblings: leave out --raw to see them",
                    read.siblings.len()
                )));
            }
            if let Some(sibling) = read.siblings.first() {
                let _ = std::io::stdout().write_all(&sibling.value);
            }
        } else if !read.siblings.is_empty() {
            let mut out = table(&["written (ms since 1970)", "bytes", "value"]);
            for sibling in &read.siblings {
                out.add_row([
                    sibling.stamp.wall_ms().to_string(),
                    sibling.value.len().to_string(),
                    printable(&sibling.value),
                ]);
            }
            print_line!("{out}");
            if read.siblings.len() > 1 {
                print_line!(
                    "the key has {} siblings: add --context {} to a put to replace them",
                    read.siblings.len(),
                    hex(&read.context)
                );
            }
        }
        if read.siblings.is_empty() {
            if self.connection.output() == Output::Table {
                eprintln!("quorate: {:?} is absent", key);
            }
            return Err(Failure::Absent);
        }
        Ok(())
    }
}

#[derive(Args)]
pub(super) struct Put {
    #[command(flatten)]
    arguments: KeyArguments,
    /// The value. "-" reads it from standard input.
    value: String,
    /// Number of acknowledgements to wait for: a number, "quorum" or "all". Default: the bucket's
    /// w.
    #[arg(long)]
    w: Option<QuorumSize>,
    /// Replace exactly the versions that a read returned, given by the context that `get --json`
    /// prints. Without it, the put replaces all versions that the coordinator holds.
    #[arg(long, value_name = "HEX")]
    context: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl Put {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = self.arguments.key()?;
        let value = match self.value.as_str() {
            "-" => {
                let mut value = Vec::new();
                std::io::stdin()
                    .read_to_end(&mut value)
                    .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
                Bytes::from(value)
            }
            value => Bytes::from(value.to_owned()),
        };
        let replacing = match &self.context {
            Some(context) => EncodedWriteMode::Exactly { context: unhex(context)? },
            None => EncodedWriteMode::Overwrite { seen: Bytes::new() },
        };
        let client = self.connection.connect().await?;
        let options = WriteOptions { w: self.w.unwrap_or_default(), ..WriteOptions::default() };
        let put = client.put(&key, Payload::Value(value), replacing, &options).await?;
        print_put(&put, self.connection.output());
        Ok(())
    }
}

#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    arguments: KeyArguments,
    /// Number of acknowledgements to wait for: a number, "quorum" or "all". Default: the bucket's
    /// w.
    #[arg(long)]
    w: Option<QuorumSize>,
    /// Delete exactly the versions that a read returned, given by the context that `get --json`
    /// prints. Without it, the command reads the key first.
    #[arg(long, value_name = "HEX")]
    context: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl Delete {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let key = self.arguments.key()?;
        let context = self.context.as_deref().map(unhex).transpose()?;
        let client = self.connection.connect().await?;
        let options = WriteOptions { w: self.w.unwrap_or_default(), ..WriteOptions::default() };
        let put = client.delete(&key, context, &options).await?;
        print_put(&put, self.connection.output());
        Ok(())
    }
}

#[derive(Args)]
pub(super) struct Scan {
    /// Name of the bucket.
    bucket: String,
    /// List only keys that begin with this text.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Maximum number of keys to list. Default: all.
    #[arg(long)]
    limit: Option<usize>,
    /// Print only the keys, without their values.
    #[arg(long)]
    keys: bool,
    /// Number of replicas of each partition that must answer: a number, "quorum" or "all". Default:
    /// the bucket's r.
    #[arg(long)]
    r: Option<QuorumSize>,
    #[command(flatten)]
    connection: Connection,
}

/// Maximum number of keys that a scan fetches in one request.
const PAGE_KEYS: usize = 1_000;

impl Scan {
    /// Fetches and prints one page at a time, so that memory does not grow with the bucket. Prints
    /// one line for each key, also in JSON.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let bucket = BucketName::new(&self.bucket)?;
        let client = self.connection.connect().await?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        let read = ReadOptions { r: self.r.unwrap_or_default(), timeout: None };
        let mut options = ScanOptions {
            prefix: self.prefix.clone().into(),
            keys_only: self.keys,
            read,
            ..ScanOptions::default()
        };
        let mut stdout = std::io::stdout().lock();
        while left > 0 {
            options.limit = left.min(PAGE_KEYS) as u32;
            let page = client.scan(&bucket, &options).await?;
            left -= page.entries.len().min(left);
            for entry in page.entries {
                let line = self.line(&entry);
                // A closed pipe (`| head`) ends the listing, and is no failure.
                if writeln!(stdout, "{line}").is_err() {
                    return Ok(());
                }
            }
            if page.cursor.is_empty() {
                break;
            }
            options.cursor = page.cursor;
        }
        Ok(())
    }

    fn line(&self, entry: &ScanEntry) -> String {
        let key = printable(&entry.key);
        match (self.connection.output(), self.keys) {
            (Output::Json, true) => json!({ "key": key }).to_string(),
            (Output::Json, false) => {
                let siblings: Vec<_> = entry.siblings.iter().map(sibling_json).collect();
                json!({ "key": key, "siblings": siblings }).to_string()
            }
            (Output::Table, true) => key,
            (Output::Table, false) => {
                let values: Vec<String> =
                    entry.siblings.iter().map(|sibling| printable(&sibling.value)).collect();
                format!("{key}\t{}", values.join("\t"))
            }
        }
    }
}

fn print_put(put: &PutReply, output: Output) {
    if output == Output::Json {
        print_json(&json!({
            "context": hex(&put.context),
            "acks": put.receipt.acked.len(),
            "hinted": put.hinted,
            "conflict": put.conflict,
            "receipt": receipt_json(&put.receipt),
        }));
    } else {
        let conflict = if put.conflict { "; the key has other siblings" } else { "" };
        let count = put.receipt.acked.len();
        let acks = if count == 1 { "ack" } else { "acks" };
        print_line!("{count} {acks} in {} µs{conflict}", put.receipt.micros);
    }
}

fn sibling_json(sibling: &Sibling) -> serde_json::Value {
    json!({ "value": printable(&sibling.value), "bytes": sibling.value.len(), "written_ms": sibling.stamp.wall_ms() })
}

fn receipt_json(receipt: &Receipt) -> serde_json::Value {
    let nodes = |nodes: &[NodeId]| nodes.iter().map(|node| format!("{:016x}", node.0)).collect::<Vec<_>>();
    json!({
        "coordinator": format!("{:016x}", receipt.coordinator.0),
        "layout": receipt.layout,
        "acked": nodes(&receipt.acked),
        "repaired": nodes(&receipt.repaired),
        "micros": receipt.micros,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Bytes, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--context {text:?}: use the hexadecimal context that `quorate get -o json` prints"
        ))
    };
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    pairs.collect::<Result<Vec<u8>, _>>().map(Bytes::from).map_err(|_| wrong())
}
