//! Membership with a fixed list of members: the same list in the configuration of every node. To
//! change it, edit the configurations of all nodes and restart the nodes.
//!
//! This crate detects no failures: a node learns only from its connections if a member answers.

mod config;

use std::collections::BTreeMap;

use quorate_core::member::{Member, NodeId};
use quorate_core::membership::{ClusterInit, MemberState, MemberView, Membership, OutgoingMessage};
use quorate_core::plugin::{OpenError, PluginContext};

pub use config::{Config, MemberEntry};

/// This plugin's name in `[membership] plugin`.
pub const NAME: &str = "static";

/// Opens the plugin.
///
/// # Errors
/// If the list does not contain this node, or contains a name twice. The error has the remedy.
pub fn open(config: Config, context: &PluginContext<'_>) -> Result<StaticMembership, OpenError> {
    let this = context.this;
    let mut members: Vec<Member> =
        config.members.iter().map(|entry| Member::new(&entry.name, &entry.address, &entry.zone)).collect();
    if members.is_empty() {
        members.push(this.clone());
    }
    members.sort_by_key(|member| member.id);
    if let Some(same) = members.windows(2).find(|w| w[0].id == w[1].id) {
        return Err(OpenError::InvalidConfig {
            key: "members",
            value: names(&members),
            remedy: format!("name {:?} is listed twice; give each member another name", same[0].name),
        });
    }
    if !members.iter().any(|member| member.id == this.id) {
        let (name, address) = (&this.name, &this.address);
        return Err(OpenError::InvalidConfig {
            key: "members",
            value: names(&members),
            remedy: format!(
                "it does not list this node, {name:?} ([node] name): add {{ name = {name:?}, address = {address:?} }}"
            ),
        });
    }
    Ok(StaticMembership { this: this.id, members, joins: config.join, published: BTreeMap::new() })
}

/// Formats the members' names as a list, for an error message.
fn names(members: &[Member]) -> String {
    let names: Vec<String> = members.iter().map(|member| format!("{:?}", member.name)).collect();
    format!("[{}]", names.join(", "))
}

/// A fixed list of members.
pub struct StaticMembership {
    this: NodeId,
    members: Vec<Member>,
    joins: bool,
    published: BTreeMap<String, Vec<u8>>,
}

const FIXED: &str = "membership \"static\" does not change while nodes run: \
                     edit [membership] members on every node and restart them";

impl Membership for StaticMembership {
    fn tick(&mut self, _now_ms: u64) -> Vec<OutgoingMessage> {
        Vec::new()
    }

    fn receive(&mut self, _from: NodeId, _message: &[u8], _now_ms: u64) -> Vec<OutgoingMessage> {
        Vec::new()
    }

    fn view(&self) -> Vec<MemberView> {
        let view = |member: &Member| MemberView { member: member.clone(), state: MemberState::Alive };
        self.members.iter().map(view).collect()
    }

    fn publish(&mut self, name: &str, value: &[u8]) {
        self.published.insert(name.to_owned(), value.to_vec());
    }

    /// Returns this node's own metadata, and nothing for other nodes: this plugin sends no
    /// messages.
    fn metadata(&self, of: NodeId) -> Vec<(String, Vec<u8>)> {
        if of == self.this { self.published.clone().into_iter().collect() } else { Vec::new() }
    }

    fn cluster_init(&self) -> Option<ClusterInit> {
        self.joins.then(|| ClusterInit { seeds: Vec::new(), expect: 0 })
    }

    fn join(&mut self, _member: Member) -> Result<(), String> {
        Err(FIXED.to_owned())
    }

    fn leave(&mut self, _node: NodeId) -> Result<(), String> {
        Err(FIXED.to_owned())
    }
}
