//! Changes of the layout, as an operator requests them from a node.

use std::time::Duration;

use quorate_core::RequestError;
use quorate_core::change::{LayoutChange, StagedChange, change_id};
use quorate_core::report::ClusterReport;
use quorate_core::request::{ClientReply, ClientRequest, ClusterRequest};

use super::sim::Sim;
use crate::oracle::Rule;

/// Client number of the operator.
const OPERATOR: usize = 998;

impl Sim {
    /// Sends an operator's request to a node. `None`: no reply arrived in time.
    pub async fn cluster(
        &self,
        via: usize,
        request: ClusterRequest,
    ) -> Option<Result<ClusterReport, RequestError>> {
        self.log.add(format!("cluster {request:?} via n{via}"));
        match self.request(OPERATOR, via, ClientRequest::Cluster(request), Duration::from_secs(2)).await? {
            Ok(ClientReply::Report(json)) => serde_json::from_str(&json).ok().map(Ok),
            Ok(_) => None,
            Err(error) => {
                self.log.add(format!("cluster: {error}"));
                Some(Err(error))
            }
        }
    }

    fn staged(&self, change: LayoutChange) -> StagedChange {
        let id = change_id(self.now_ms(), 0, self.last_change.get());
        self.last_change.set(id);
        StagedChange { id, change }
    }

    /// Applies one change through a node. If no reply arrives, sends it to another running node
    /// too: then both nodes may have applied it.
    async fn apply(&self, via: usize, change: LayoutChange) -> bool {
        let apply = ClusterRequest::Apply(self.staged(change));
        let count = self.count();
        let others = (1..count).map(|step| (via + step) % count).filter(|&other| self.is_running(other));
        for node in [via].into_iter().chain(others.take(1)) {
            if let Some(reply) = self.cluster(node, apply.clone()).await {
                return reply.is_ok();
            }
        }
        false
    }

    /// Stages changes at a node and commits them. A single change may be applied at once instead.
    ///
    /// Returns false if the node refused a change, or if a reply did not arrive.
    pub async fn change(&self, via: usize, changes: Vec<LayoutChange>) -> bool {
        self.oracle.layout_changes();
        // The time decides if the change is applied at once or staged, so that runs do both.
        if let [change] = &changes[..]
            && self.now_ms().is_multiple_of(2)
        {
            return self.apply(via, change.clone()).await;
        }
        for change in changes {
            let stage = ClusterRequest::Stage(self.staged(change));
            if !matches!(self.cluster(via, stage).await, Some(Ok(_))) {
                self.cluster(via, ClusterRequest::Clear).await;
                return false;
            }
        }
        matches!(self.cluster(via, ClusterRequest::Commit { plan: None }).await, Some(Ok(_)))
    }

    /// Returns the change that makes a machine a member.
    pub fn join_change(&self, node: usize) -> LayoutChange {
        let member = self.machines.borrow()[node].member.clone();
        LayoutChange::Join {
            name: member.name,
            address: member.address,
            zone: String::new(),
            weight: member.weight,
        }
    }

    /// Returns the change that takes a node out of the cluster.
    pub fn leave_change(&self, node: usize) -> LayoutChange {
        LayoutChange::Leave { name: self.name(node) }
    }

    /// Tells the oracle that an operator is about to declare a node's disk lost.
    ///
    /// The acked writes on this disk count as lost. The cluster refuses the node if it starts
    /// again.
    pub fn declare_lost(&self, node: usize) {
        self.log.add(format!("declare n{node} lost"));
        self.oracle.disk_lost(node, self.now_ms());
        self.declared_lost.borrow_mut().insert(node);
    }

    /// Returns true if a node's disk was declared lost.
    pub fn was_declared_lost(&self, node: usize) -> bool {
        self.declared_lost.borrow().contains(&node)
    }

    /// Waits until all running members act on the newest layout alone. Reports a violation if they
    /// do not within 200 seconds.
    pub async fn until_layout_change_ends(&self) {
        for _ in 0..2_000 {
            if self.layout_change_has_ended().await {
                return;
            }
            self.sleep(100).await;
        }
        let mut reports = Vec::new();
        for node in self.members() {
            let report = self.cluster(node, ClusterRequest::Show).await;
            reports.push(format!("n{node}: {report:?}"));
        }
        let text = format!("a change of layout does not end: {}", reports.join("\n"));
        self.oracle.report(Rule::Convergence, text);
    }

    async fn layout_change_has_ended(&self) -> bool {
        let digest = format!("{:016x}", self.layout().digest());
        for node in self.members().into_iter().filter(|&node| self.is_running(node)) {
            let Some(status) = self.status(node).await else { return false };
            if status.change.is_some() || status.layout_digest != digest {
                return false;
            }
        }
        true
    }
}
