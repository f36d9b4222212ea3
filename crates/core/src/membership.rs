//! The third plugin trait: who is in the cluster. Without IO: messages go in, messages come out.

use crate::member::{Member, NodeId};

/// A message that a membership plugin wants sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutgoingMessage {
    /// To whom.
    pub to: NodeId,
    /// Opaque to everybody but the same plugin there.
    pub message: Vec<u8>,
}

/// What a plugin believes about a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// Nothing speaks against it.
    Alive,
    /// It was not heard from lately. Changes no layout.
    Suspected,
    /// An operator took it out.
    Left,
}

/// A member and what is believed of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberView {
    /// Who.
    pub member: Member,
    /// In which state.
    pub state: MemberState,
}

/// The way in which a node without a layout finds a cluster, or initialises one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterInit {
    /// Addresses, "host:port", where members may be found.
    pub seeds: Vec<String>,
    /// How many members make up a new cluster. 0: this node initialises none, it
    /// waits until it finds one.
    pub expect: usize,
}

/// Who is there, are they alive. Driven from outside: `tick` as time passes, `receive` for messages.
///
/// # Contract
/// - Deterministic: the same calls give the same messages and views.
/// - `view` names every member once, in order of node id, this node among them and alive.
/// - `receive` takes any bytes from anybody: what is malformed is ignored, never a panic.
/// - A member that was not heard from is suspected, never forgotten; only `leave` removes one.
/// - Each call returns a bounded number of messages, all of them to members of the view.
pub trait Membership: Send + 'static {
    /// Time has passed; `now_ms` never goes back.
    fn tick(&mut self, now_ms: u64) -> Vec<OutgoingMessage>;

    /// A message of the same plugin on another node.
    fn receive(&mut self, from: NodeId, message: &[u8], now_ms: u64) -> Vec<OutgoingMessage>;

    /// The way in which a node without a layout finds or initialises a cluster. `None`: the view is the
    /// cluster from the start.
    fn cluster_init(&self) -> Option<ClusterInit> {
        None
    }

    /// Everybody, as this node sees it.
    fn view(&self) -> Vec<MemberView>;

    /// Publishes an entry of this node's metadata to the other nodes. It replaces an earlier one of that name.
    fn publish(&mut self, name: &str, value: &[u8]);

    /// The metadata that a member published, by name. Nothing for an unknown member.
    fn metadata(&self, of: NodeId) -> Vec<(String, Vec<u8>)>;

    /// Adds a member, if this kind of membership can change while nodes run.
    ///
    /// # Errors
    /// Why not, and what to do instead.
    fn join(&mut self, member: Member) -> Result<(), String>;

    /// Marks a member as taken out, for good.
    ///
    /// # Errors
    /// Why not, and what to do instead.
    fn leave(&mut self, node: NodeId) -> Result<(), String>;
}
