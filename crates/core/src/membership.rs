//! The third plugin trait: membership, which finds the cluster's nodes and says if they seem alive.
//! A membership plugin does no IO: it is given the messages that arrive, and returns messages to
//! send.

use crate::member::{Member, NodeId};

/// A message that a membership plugin sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutgoingMessage {
    /// The receiver.
    pub to: NodeId,
    /// The message's bytes. Only the same plugin on the receiver understands them.
    pub message: Vec<u8>,
}

/// The state of a member, as a plugin sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// The member seems alive.
    Alive,
    /// No recent message shows that the member is alive. This changes no layout.
    Suspected,
    /// An operator removed the member.
    Left,
}

/// A member and its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberView {
    /// The member.
    pub member: Member,
    /// The member's state, as this node sees it.
    pub state: MemberState,
}

/// The settings with which a node without a layout finds a cluster, or initialises one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterInit {
    /// Addresses, "host:port", through which the node finds the cluster.
    pub seeds: Vec<String>,
    /// Number of members of a new cluster. 0: this node initialises none, and waits until it finds
    /// one.
    pub expect: usize,
}

/// The cluster's nodes and their states. The caller calls `tick` as time passes, and `receive` for
/// each message.
///
/// # Contract
/// - Deterministic: the same calls give the same messages and views.
/// - `view` names every member once, in order of node id. This node is among them, and alive.
/// - `receive` accepts any bytes from any node: malformed ones are ignored, and never cause a
///   panic.
/// - A silent member is suspected, never forgotten; only `leave` removes one.
/// - Each call returns a bounded number of messages, all of them to members of the view.
pub trait Membership: Send + 'static {
    /// Notes that time has passed. `now_ms` is in milliseconds and never decreases. Returns
    /// messages to send.
    fn tick(&mut self, now_ms: u64) -> Vec<OutgoingMessage>;

    /// Receives a message of the same plugin on another node. Returns messages to send.
    fn receive(&mut self, from: NodeId, message: &[u8], now_ms: u64) -> Vec<OutgoingMessage>;

    /// Returns the settings with which a node without a layout finds or initialises a cluster.
    /// `None`: the members of the view are the cluster from the start.
    fn cluster_init(&self) -> Option<ClusterInit> {
        None
    }

    /// Returns all members, as this node sees them.
    fn view(&self) -> Vec<MemberView>;

    /// Publishes an entry of this node's metadata to the other nodes. The entry replaces an earlier
    /// one of the same name.
    fn publish(&mut self, name: &str, value: &[u8]);

    /// Returns the metadata that a member published, by name. It is empty for an unknown member.
    fn metadata(&self, of: NodeId) -> Vec<(String, Vec<u8>)>;

    /// Adds a member, if this kind of membership can change while nodes run.
    ///
    /// # Errors
    /// The reason, and the remedy.
    fn join(&mut self, member: Member) -> Result<(), String>;

    /// Marks a member as removed, for good.
    ///
    /// # Errors
    /// The reason, and the remedy.
    fn leave(&mut self, node: NodeId) -> Result<(), String>;
}
