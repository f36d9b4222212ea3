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

/// Options of a read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Number of replicas that must answer. Default: the bucket's R.
    pub r: QuorumSize,
    /// Longest time of the operation, retries included. Default: the client's timeout.
    pub timeout: Option<Duration>,
}

/// Options of a write.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Number of replicas that must ack. Default: the bucket's W.
    pub w: QuorumSize,
    /// True if the ack of a fallback counts for the replica that it stands in for. Default: the
    /// bucket's setting.
    pub sloppy: Option<bool>,
    /// Longest time of the operation, retries included. Default: the client's timeout.
    pub timeout: Option<Duration>,
}

/// Selection of one page of a bucket.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// Prefix of the keys to return.
    pub prefix: Bytes,
    /// Cursor that the previous page returned; empty for the first page.
    pub cursor: Bytes,
    /// Largest number of entries of the page. 0: the node's default, 1,000. A page of large values
    /// ends earlier.
    pub limit: u32,
    /// True if the values are left out.
    pub keys_only: bool,
    /// Options of the read: `r` is that of each partition, `timeout` that of the whole page.
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

/// Request ids of this client's writes: the first is random, each next one is a fixed step further.
/// Another client is unlikely to use the same ids. (A forked process would repeat them, but it
/// cannot use the client, because it cannot use the client's event loop.)
struct RequestIds(Cell<u64>);

impl RequestIds {
    /// Returns the next id. The step is odd, so that all 2^64 ids are used before one repeats. It
    /// is large, so that the ids of two clients with nearby first ids are far apart.
    fn next(&self) -> RequestId {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        RequestId(self.0.replace(self.0.get().wrapping_add(STEP)))
    }
}

impl Client {
    /// Connects over TCP.
    ///
    /// # Errors
    /// `Unreachable`, with each address and its error.
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

    /// Reads a key. The reply has no siblings if the key is absent or deleted.
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
    /// [`ClientError`]; `Indeterminate` if the write may appear later.
    pub async fn put(
        &self,
        key: &Key,
        payload: Payload,
        mode: EncodedWriteMode,
        options: &WriteOptions,
    ) -> Result<PutReply, ClientError> {
        if payload.len() > MAX_VALUE_BYTES {
            let detail = format!(
                "value of {} bytes: no bucket accepts more than {MAX_VALUE_BYTES}; split it",
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

    /// Deletes versions of a key. With a context, deletes exactly the versions in the context.
    /// Without one, first reads R replicas, and deletes the versions that the read returns. The
    /// context is fixed before the first attempt of the delete, so that a retry deletes nothing
    /// that was written meanwhile.
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

    /// Returns a key's partition and replicas, and the versions that each replica holds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, key: &Key) -> Result<Explanation, ClientError> {
        self.report(Some(key.hash()), ClientRequest::Explain(key.clone())).await
    }

    /// Returns the cluster as one node sees it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.report(None, ClientRequest::Status).await
    }

    /// Returns the state of anti-entropy on the first node that answers. With `start`, that node
    /// begins a round with each of its peers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn repair(&self, start: bool) -> Result<RepairStatus, ClientError> {
        self.report(None, ClientRequest::Repair { start }).await
    }

    /// Sends a request that shows or changes the cluster's layout. Returns a JSON document: a
    /// [`quorate_core::report::PlanReport`] for a plan, a [`quorate_core::report::BucketsReport`]
    /// for buckets, and a [`quorate_core::report::ClusterReport`] otherwise.
    ///
    /// # Errors
    /// [`ClientError`]; `InvalidRequest` if a change does not fit the newest layout.
    pub async fn cluster(&self, request: ClusterRequest) -> Result<String, ClientError> {
        self.cluster_within(request, None).await
    }

    /// Gives a layout change an id, once for all attempts. By the id, nodes recognise a change that
    /// is sent again, and do not apply it again.
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

    /// Gives a bucket a permanent definition of its own, and waits until all nodes use it. The call
    /// may be repeated with the same definition.
    ///
    /// # Errors
    /// [`ClientError`]; `InvalidRequest` if the definition is refused, `Indeterminate` if not all
    /// nodes use it in time.
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

    /// Returns the definitions of all buckets, as one node knows them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn buckets(&self) -> Result<BucketsReport, ClientError> {
        self.cluster_as(ClusterRequest::Buckets).await
    }

    /// Sends a request as [`Client::cluster`] does, and parses the JSON document.
    ///
    /// # Errors
    /// As [`Client::cluster`].
    pub async fn cluster_as<T: serde::de::DeserializeOwned>(
        &self,
        request: ClusterRequest,
    ) -> Result<T, ClientError> {
        report_of(&self.cluster(request).await?)
    }

    /// Fetches the layout if layout `number`, which the coordinator of a reply used, is newer than
    /// the client's layout. If the fetch fails, the client keeps its layout.
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

    /// Fetches the layout that a node uses for reads.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn layout(&self) -> Result<Layout, ClientError> {
        match self.run(None, ClientRequest::Layout, None).await? {
            ClientReply::Layout(bytes) => Layout::decode(&bytes).map_err(|error| {
                RequestError::invalid(format!("cannot decode the node's layout: {error}")).into()
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Measures one round trip to a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let begun = Instant::now();
        self.run(None, ClientRequest::Ping, None).await?;
        Ok(begun.elapsed())
    }

    /// Returns fingerprints of all records that the connected node holds, by partition. Use a
    /// client with `follow = false`, because the result depends on the node that answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn fingerprint(&self) -> Result<Vec<PartitionFingerprint>, ClientError> {
        match self.run(None, ClientRequest::Fingerprint, Some(Duration::from_secs(30))).await? {
            ClientReply::Fingerprint(partitions) => Ok(partitions),
            other => Err(unexpected(&other)),
        }
    }

    /// Cuts the connected node off from these nodes, given by name; an empty list ends all cuts.
    /// The node refuses this unless its configuration enables faults.
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
            ClientReply::Report(json) => serde_json::from_str(&json).map_err(|error| {
                RequestError::invalid(format!("cannot parse the node's report: {error}")).into()
            }),
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
        .map_err(|error| RequestError::invalid(format!("cannot parse the node's report: {error}")).into())
}

fn unexpected(reply: &ClientReply) -> ClientError {
    RequestError::invalid(format!("the node's reply does not fit the request: {reply:?}")).into()
}
