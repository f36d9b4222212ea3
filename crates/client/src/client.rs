//! The client's operations.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::change::{LayoutChange, StagedChange, change_id};
use quorate_core::environment::Environment;
use quorate_core::key::{BucketName, MAX_VALUE_BYTES};
use quorate_core::object::RequestId;
use quorate_core::quorum::QuorumSize;
use quorate_core::report::{BucketsReport, Explanation, RepairStatus, Status};
use quorate_core::request::{
    ClientReply, ClientRequest, ClusterRequest, EncodedWriteMode, GetReply, GetRequest, PartitionFingerprint,
    PutReply, PutRequest, ScanReply, ScanRequest,
};
use quorate_core::{BucketDefinition, Key, Layout, Payload, RequestError};
use quorate_rpc::network::Network;
use tokio::time::Instant;

use crate::attempts::Attempts;
use crate::config::{ClientConfig, ClientError};
use crate::routes::Routes;
use crate::system::{System, Tcp};

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Replicas that must answer. Default: the bucket's.
    pub r: QuorumSize,
    /// How long the operation may take, retries included. Default: the client's.
    pub timeout: Option<Duration>,
}

/// How to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Replicas that must ack. Default: the bucket's.
    pub w: QuorumSize,
    /// Whether fallbacks may stand in. Default: the bucket's.
    pub sloppy: Option<bool>,
    /// How long the operation may take, retries included. Default: the client's.
    pub timeout: Option<Duration>,
}

/// Which page of a bucket to read.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// Only keys that begin with these bytes.
    pub prefix: Bytes,
    /// Where the page before ended; empty: at the start.
    pub cursor: Bytes,
    /// Most entries; 0: as many as fit a page.
    pub limit: u32,
    /// Leave the values out.
    pub keys_only: bool,
    /// How to read.
    pub read: ReadOptions,
}

/// A client of one cluster, on one thread.
pub struct Client {
    config: ClientConfig,
    routes: Routes,
    network: Rc<dyn Network>,
    environment: Arc<dyn Environment>,
    request_ids: RequestIds,
    last_change: Cell<u64>,
}

/// Numbers for this client's writes, which nobody else's are likely to have: begun at random, one step further each.
/// (A client is not used on in a forked process: its event loop cannot be.)
struct RequestIds(Cell<u64>);

impl RequestIds {
    /// An odd step visits all 2^64 numbers before it repeats one, and is far from those of clients begun nearby.
    fn next(&self) -> RequestId {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        RequestId(self.0.replace(self.0.get().wrapping_add(STEP)))
    }
}

impl Client {
    /// Connects over TCP.
    ///
    /// # Errors
    /// `Unreachable`, naming each address and what happened there.
    pub async fn connect(config: ClientConfig) -> Result<Rc<Client>, ClientError> {
        Client::connect_with(config, Rc::new(Tcp), Arc::new(System::new())).await
    }

    /// Connects over the given network.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(
        config: ClientConfig,
        network: Rc<dyn Network>,
        environment: Arc<dyn Environment>,
    ) -> Result<Rc<Client>, ClientError> {
        let routes = Routes::new(&config.nodes);
        let request_ids = RequestIds(Cell::new(environment.random()));
        let client =
            Rc::new(Client { config, routes, network, environment, request_ids, last_change: Cell::new(0) });
        if client.config.follow {
            let layout = client.layout().await?;
            client.routes.follow(layout);
        } else {
            client.ping().await?;
        }
        Ok(client)
    }

    /// Reads a key. No siblings: it is absent or deleted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, key: &Key, options: &ReadOptions) -> Result<GetReply, ClientError> {
        let request = ClientRequest::Get(GetRequest { key: key.clone(), r: options.r });
        match self.run(Some(key.hash()), request, options.timeout).await? {
            ClientReply::Get(reply) => {
                self.follow(reply.receipt.layout).await;
                Ok(reply)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Writes a key; deletes it if the payload is a tombstone.
    ///
    /// # Errors
    /// [`ClientError`]; `Indeterminate` if the write may surface later.
    pub async fn put(
        &self,
        key: &Key,
        payload: Payload,
        mode: EncodedWriteMode,
        options: &WriteOptions,
    ) -> Result<PutReply, ClientError> {
        if payload.len() > MAX_VALUE_BYTES {
            let detail = format!(
                "value of {} bytes: no bucket takes more than {MAX_VALUE_BYTES}; split it",
                payload.len()
            );
            return Err(RequestError::InvalidRequest { detail }.into());
        }
        let request = ClientRequest::Put(PutRequest {
            key: key.clone(),
            payload,
            mode,
            request: self.request_ids.next(),
            w: options.w,
            sloppy: options.sloppy,
            attempt: 0,
        });
        match self.run(Some(key.hash()), request, options.timeout).await? {
            ClientReply::Put(reply) => {
                self.follow(reply.receipt.layout).await;
                Ok(reply)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a key: with a context exactly what that contains, without one what R replicas show. The context is fixed
    /// once, here, so that a retry deletes nothing that was written meanwhile.
    ///
    /// # Errors
    /// [`ClientError`]; `Indeterminate` if the delete may take effect later.
    pub async fn delete(
        &self,
        key: &Key,
        context: Option<Bytes>,
        options: &WriteOptions,
    ) -> Result<PutReply, ClientError> {
        let begun = Instant::now();
        let timeout = options.timeout.unwrap_or(self.config.timeout);
        let read = ReadOptions { r: QuorumSize::Default, timeout: Some(timeout) };
        let context = match context {
            Some(context) => context,
            None => self.get(key, &read).await?.context,
        };
        let options = WriteOptions { timeout: Some(timeout.saturating_sub(begun.elapsed())), ..*options };
        self.put(key, Payload::Tombstone, EncodedWriteMode::Exactly { context }, &options).await
    }

    /// Reads one page of a bucket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scan(&self, bucket: &BucketName, options: &ScanOptions) -> Result<ScanReply, ClientError> {
        let request = ClientRequest::Scan(ScanRequest {
            bucket: bucket.clone(),
            prefix: options.prefix.clone(),
            cursor: options.cursor.clone(),
            limit: options.limit,
            keys_only: options.keys_only,
            r: options.read.r,
        });
        match self.run(None, request, options.read.timeout).await? {
            ClientReply::Scan(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Where a key lies and what each replica holds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, key: &Key) -> Result<Explanation, ClientError> {
        self.report(Some(key.hash()), ClientRequest::Explain(key.clone())).await
    }

    /// A node's view of the cluster.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.report(None, ClientRequest::Status).await
    }

    /// What anti-entropy of the first node that answers is doing; `start`: have it begin a round with every peer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn repair(&self, start: bool) -> Result<RepairStatus, ClientError> {
        self.report(None, ClientRequest::Repair { start }).await
    }

    /// Asks about the cluster's layout, or changes it. The answer is a JSON document: a
    /// [`quorate_core::report::ClusterReport`], or, of a plan, a [`quorate_core::report::PlanReport`].
    ///
    /// # Errors
    /// [`ClientError`]; `InvalidRequest` if a change does not fit.
    pub async fn cluster(&self, request: ClusterRequest) -> Result<String, ClientError> {
        self.cluster_within(request, None).await
    }

    /// Names a change of the layout, once for all attempts: one that is asked for again is not made again.
    pub fn staged(&self, change: LayoutChange) -> StagedChange {
        let id = change_id(self.environment.wall_ms(), self.environment.random(), self.last_change.get());
        self.last_change.set(id);
        StagedChange { id, change }
    }

    async fn cluster_within(
        &self,
        request: ClusterRequest,
        timeout: Option<Duration>,
    ) -> Result<String, ClientError> {
        match self.run(None, ClientRequest::Cluster(request), timeout).await? {
            ClientReply::Report(json) => Ok(json),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives a bucket a definition of its own, for good, and waits until all nodes go by it. Repeating it is fine.
    ///
    /// # Errors
    /// [`ClientError`]; `InvalidRequest` if it does not fit, `Indeterminate` if not all nodes have taken it in time.
    pub async fn create_bucket(
        &self,
        name: &str,
        definition: BucketDefinition,
        timeout: Duration,
    ) -> Result<BucketsReport, ClientError> {
        let name = name.to_owned();
        let request = ClusterRequest::CreateBucket { name, definition };
        report_of(&self.cluster_within(request, Some(timeout)).await?)
    }

    /// What buckets' keys are held to, as one node knows it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn buckets(&self) -> Result<BucketsReport, ClientError> {
        self.cluster_as(ClusterRequest::Buckets).await
    }

    /// As [`Client::cluster`], taken apart.
    ///
    /// # Errors
    /// As [`Client::cluster`].
    pub async fn cluster_as<T: serde::de::DeserializeOwned>(
        &self,
        request: ClusterRequest,
    ) -> Result<T, ClientError> {
        report_of(&self.cluster(request).await?)
    }

    /// A coordinator that goes by a newer layout has answered: follow it, too. A client that can't goes on as before.
    async fn follow(&self, number: u64) {
        if !self.config.follow || !self.routes.is_newer(number) {
            return;
        }
        let timeout = Duration::from_millis(500).min(self.config.timeout);
        if let Ok(ClientReply::Layout(bytes)) = self.run(None, ClientRequest::Layout, Some(timeout)).await
            && let Ok(layout) = Layout::decode(&bytes)
            && self.routes.is_newer(layout.number())
        {
            self.routes.follow(layout);
        }
    }

    /// The layout that a node acts on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn layout(&self) -> Result<Layout, ClientError> {
        match self.run(None, ClientRequest::Layout, None).await? {
            ClientReply::Layout(bytes) => Layout::decode(&bytes)
                .map_err(|error| RequestError::invalid(format!("the node's layout: {error}")).into()),
            other => Err(unexpected(&other)),
        }
    }

    /// One round trip to a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let begun = Instant::now();
        self.run(None, ClientRequest::Ping, None).await?;
        Ok(begun.elapsed())
    }

    /// A digest of all that the connected node holds. For a client that does not follow: which node answers matters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn fingerprint(&self) -> Result<Vec<PartitionFingerprint>, ClientError> {
        match self.run(None, ClientRequest::Fingerprint, Some(Duration::from_secs(30))).await? {
            ClientReply::Fingerprint(partitions) => Ok(partitions),
            other => Err(unexpected(&other)),
        }
    }

    /// Cuts the connected node off from others, by name. Refused unless its configuration turns faults on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_faults(&self, cut: Vec<String>) -> Result<(), ClientError> {
        self.run(None, ClientRequest::Faults { cut }, None).await.map(|_| ())
    }

    /// Closes all connections. Operations under way end as if their connections had been lost.
    pub fn close(&self) {
        self.routes.close();
    }

    async fn report<T: serde::de::DeserializeOwned>(
        &self,
        key_hash: Option<u64>,
        request: ClientRequest,
    ) -> Result<T, ClientError> {
        match self.run(key_hash, request, None).await? {
            ClientReply::Report(json) => serde_json::from_str(&json)
                .map_err(|error| RequestError::invalid(format!("the node's report: {error}")).into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn run(
        &self,
        key_hash: Option<u64>,
        request: ClientRequest,
        timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError> {
        let timeout = timeout.unwrap_or(self.config.timeout);
        let deadline = Instant::now() + timeout;
        let attempts = Attempts {
            routes: &self.routes,
            network: &self.network,
            environment: &*self.environment,
            deadline,
            timeout,
        };
        attempts.run(key_hash, request).await
    }
}

fn report_of<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, ClientError> {
    serde_json::from_str(json)
        .map_err(|error| RequestError::invalid(format!("the node's report: {error}")).into())
}

fn unexpected(reply: &ClientReply) -> ClientError {
    RequestError::invalid(format!("the node answered with something else: {reply:?}")).into()
}
