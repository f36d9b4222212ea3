//! Requests of clients to nodes.

use std::time::Duration;

use quorate_core::RequestId;
use quorate_core::report::{RepairStatus, Status};
use quorate_core::request::{ClientReply, ClientRequest, ClientResult};

use super::connections::Ends;
use super::sim::Sim;

/// The reply to a request. `None`: no reply arrived in time.
pub type Reply = Option<ClientResult>;

/// Client number of the simulation itself, which reads the nodes' status.
const OBSERVER: usize = 999;

impl Sim {
    /// Sends a request to a node, and waits for the reply.
    pub async fn request(
        &self,
        client: usize,
        node: usize,
        request: ClientRequest,
        timeout: Duration,
    ) -> Reply {
        let address = self.machines.borrow()[node].member.address.clone();
        let ends = Ends { client, node };
        let exchange = self.connections.exchange(&self.net, ends, &address, request, timeout);
        tokio::time::timeout(timeout, exchange).await.ok().flatten()
    }

    /// Creates the id of a new write.
    pub fn new_request(&self) -> RequestId {
        RequestId(self.next_request.replace(self.next_request.get() + 1))
    }

    /// Returns a node's status.
    pub async fn status(&self, node: usize) -> Option<Status> {
        serde_json::from_str(&self.report(node, ClientRequest::Status).await?).ok()
    }

    /// Returns the state of a node's anti-entropy.
    pub(super) async fn repair_status(&self, node: usize) -> Option<RepairStatus> {
        self.repair(node, ClientRequest::Repair { start: false }).await
    }

    /// Starts anti-entropy of a node with each of its peers. Returns its state at the start.
    pub(super) async fn start_repair(&self, node: usize) -> Option<RepairStatus> {
        self.repair(node, ClientRequest::Repair { start: true }).await
    }

    async fn repair(&self, node: usize, request: ClientRequest) -> Option<RepairStatus> {
        serde_json::from_str(&self.report(node, request).await?).ok()
    }

    /// Sends a request that a node answers with a JSON document, and returns the document.
    async fn report(&self, node: usize, request: ClientRequest) -> Option<String> {
        match self.request(OBSERVER, node, request, Duration::from_secs(2)).await {
            Some(Ok(ClientReply::Report(json))) => Some(json),
            _ => None,
        }
    }
}

/// Describes a reply for the log.
pub(super) fn summary(reply: &Reply) -> String {
    match reply {
        None => "nothing".into(),
        Some(Ok(ClientReply::Put(reply))) => {
            format!("acked {:?} conflict {}", reply.receipt.acked, reply.conflict)
        }
        Some(Ok(ClientReply::Get(reply))) => {
            let values: Vec<_> =
                reply.siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned()).collect();
            format!("{values:?} of {:?}", reply.receipt.acked)
        }
        Some(Ok(_)) => "done".into(),
        Some(Err(error)) => error.to_string(),
    }
}
