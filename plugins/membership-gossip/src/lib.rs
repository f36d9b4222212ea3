//! Membership by gossip: nodes find each other through seeds. They pass on which members they know,
//! and each member's metadata and heartbeat.
//!
//! In each round a node sends its *digest* to a few other nodes. For every member, this digest says
//! how new the node's knowledge of the member is. The receiver answers with the members of which it
//! has newer knowledge, and asks for those of which it has older knowledge. A *heartbeat* is a
//! counter that each member increments for itself. It travels in the digests. A member whose
//! heartbeat has not advanced for long is suspected, but never removed.
//!
//! This crate has no connections, no clock and no outside randomness: the same calls give the same
//! messages.
//!
//! Source: van Renesse et al., *Efficient Reconciliation and Flow Control for Anti-Entropy
//! Protocols* (Scuttlebutt), 2008. SWIM (Das et al., 2002) is the source of one rule: a node that
//! receives a card of its own earlier run raises its incarnation, so that its present card is
//! newer.

mod config;
mod message;

use std::collections::BTreeMap;

use quorate_core::member::{MAX_MEMBERS, Member, NodeId};
use quorate_core::membership::{ClusterInit, MemberState, MemberView, Membership, OutgoingMessage};
use quorate_core::plugin::{OpenError, PluginContext};

pub use config::Config;
use message::{Age, Card, MAX_METADATA, MAX_METADATA_BYTES, Message};

/// This plugin's name in `[membership] plugin`.
pub const NAME: &str = "gossip";

/// Number of members to which a node sends its digest in one round. None of them is suspected. The
/// node also sends the digest to one suspected member, if there is any.
const TARGETS_PER_ROUND: usize = 2;

/// Opens the plugin.
///
/// # Errors
/// If a value is invalid. The error names its key and the remedy.
pub fn open(config: Config, context: &PluginContext<'_>) -> Result<GossipMembership, OpenError> {
    let this = context.this;
    for (name, number) in [("interval_ms", config.interval_ms), ("suspect_after_ms", config.suspect_after_ms)]
    {
        if number == 0 || number > 3_600_000 {
            let (value, remedy) = (number.to_string(), "use 1 to 3600000".to_owned());
            return Err(OpenError::InvalidConfig { key: name, value, remedy });
        }
    }
    let refused = |remedy: String| {
        Err(OpenError::InvalidConfig { key: "expect", value: config.expect.to_string(), remedy })
    };
    if config.expect == 0 || config.expect > MAX_MEMBERS {
        return refused(format!("use 1 to {MAX_MEMBERS}"));
    }
    if config.seeds.is_empty() && config.expect > 1 {
        return refused(
            "without seeds, this node cannot find the other nodes; set seeds = [\"host:port\", …]".to_owned(),
        );
    }
    if config.expect == 1 && config.seeds.iter().any(|seed| *seed != this.address) {
        return refused(
            "with seeds and expect = 1, this node would begin a cluster of its own; set expect to the \
             number of nodes that begin the cluster, the same number on all of them"
                .to_owned(),
        );
    }
    let card = Card::of(this.clone());
    Ok(GossipMembership {
        this: this.id,
        config,
        known: BTreeMap::from([(this.id, Known { card, heartbeat: 0, advanced_ms: 0 })]),
        now_ms: 0,
        next_round_ms: 0,
        random: this.id.0,
    })
}

/// One node's knowledge of all members.
pub struct GossipMembership {
    this: NodeId,
    config: Config,
    known: BTreeMap<NodeId, Known>,
    now_ms: u64,
    next_round_ms: u64,
    random: u64,
}

/// One node's knowledge of one member.
struct Known {
    card: Card,
    heartbeat: u64,
    /// Monotonic time at which the heartbeat or the card last advanced, in milliseconds.
    advanced_ms: u64,
}

impl Known {
    fn age(&self) -> Age {
        Age { incarnation: self.card.incarnation, version: self.card.version, heartbeat: self.heartbeat }
    }
}

impl GossipMembership {
    /// Returns the next pseudo-random number below `bound`. The generator is SplitMix64, seeded
    /// with this node's id: nodes draw different numbers, and each node the same numbers in each
    /// run.
    fn draw(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn own(&mut self) -> &mut Known {
        self.known.get_mut(&self.this).expect("`known` always contains this node")
    }

    fn is_suspected(&self, known: &Known) -> bool {
        known.card.member.id != self.this && self.now_ms > known.advanced_ms + self.config.suspect_after_ms
    }

    fn digest(&self) -> Message {
        let own = &self.known[&self.this];
        let ages = self.known.iter().map(|(id, known)| (id.0, known.age())).collect();
        Message::Digest { own: (own.card.clone(), own.heartbeat), ages }
    }

    fn send(&self, to: NodeId, message: &Message) -> Option<OutgoingMessage> {
        self.known.contains_key(&to).then(|| OutgoingMessage { to, message: message.encode() })
    }

    /// Merges a card and a heartbeat, if they are newer than the known ones.
    ///
    /// A received card of this node can be newer than the node's own card, or have the same
    /// incarnation and another content. It is then from an earlier run of the node, or another node
    /// has marked it as left. The node raises its incarnation above that of the received card, so
    /// that its own card is newer.
    fn merge(&mut self, card: Card, heartbeat: u64) {
        let id = card.member.id;
        if id == self.this {
            let now_ms = self.now_ms;
            let own = self.own();
            if (card.incarnation, card.version) > (own.card.incarnation, own.card.version)
                || (card.incarnation == own.card.incarnation && card != own.card)
            {
                own.card.incarnation = card.incarnation + 1;
                own.advanced_ms = now_ms;
            }
            return;
        }
        let (now_ms, has_space) = (self.now_ms, self.known.len() < MAX_MEMBERS);
        match self.known.get_mut(&id) {
            Some(known) => {
                let newer = (card.incarnation, card.version) > (known.card.incarnation, known.card.version);
                if newer {
                    let left = known.card.left || card.left;
                    known.card = card;
                    known.card.left = left;
                }
                if newer || heartbeat > known.heartbeat {
                    known.heartbeat = heartbeat;
                    known.advanced_ms = now_ms;
                }
            }
            None if has_space => {
                self.known.insert(id, Known { card, heartbeat, advanced_ms: now_ms });
            }
            None => {}
        }
    }

    /// Answers a digest: sends the cards that are newer here, and asks for those that are older or
    /// missing here.
    fn answer(&mut self, from: NodeId, digest: Vec<(u64, Age)>) -> Vec<OutgoingMessage> {
        let now_ms = self.now_ms;
        let mut wanted = Vec::new();
        let mut behind: BTreeMap<NodeId, Age> = BTreeMap::new();
        for (id, age) in digest.into_iter().take(MAX_MEMBERS) {
            let id = NodeId(id);
            behind.insert(id, age);
            match self.known.get_mut(&id) {
                Some(known)
                    if (age.incarnation, age.version) > (known.card.incarnation, known.card.version) =>
                {
                    wanted.push(id.0);
                }
                // Only the heartbeat is newer. The digest contains it, so the card is not
                // requested.
                Some(known)
                    if age.incarnation == known.card.incarnation && age.heartbeat > known.heartbeat =>
                {
                    if id != self.this {
                        known.heartbeat = age.heartbeat;
                        known.advanced_ms = now_ms;
                    }
                }
                Some(_) => {}
                None => wanted.push(id.0),
            }
        }
        let newer =
            |known: &&Known| behind.get(&known.card.member.id).is_none_or(|theirs| known.age() > *theirs);
        let cards =
            self.known.values().filter(newer).map(|known| (known.card.clone(), known.heartbeat)).collect();
        self.send(from, &Message::News { cards, wanted }).into_iter().collect()
    }
}

impl Membership for GossipMembership {
    fn tick(&mut self, now_ms: u64) -> Vec<OutgoingMessage> {
        self.now_ms = self.now_ms.max(now_ms);
        if self.now_ms < self.next_round_ms {
            return Vec::new();
        }
        self.next_round_ms = self.now_ms + self.config.interval_ms;
        let now_ms = self.now_ms;
        let own = self.own();
        own.heartbeat += 1;
        own.advanced_ms = now_ms;
        let others = |suspected: bool| -> Vec<NodeId> {
            let wanted = |known: &&Known| {
                !known.card.left && known.card.member.id != self.this && self.is_suspected(known) == suspected
            };
            self.known.values().filter(wanted).map(|known| known.card.member.id).collect()
        };
        let (mut alive, suspected) = (others(false), others(true));
        let mut targets = Vec::new();
        while targets.len() < TARGETS_PER_ROUND && !alive.is_empty() {
            let at = self.draw(alive.len());
            targets.push(alive.swap_remove(at));
        }
        // A suspected member may be back, or may be connected to other members only.
        if !suspected.is_empty() {
            targets.push(suspected[self.draw(suspected.len())]);
        }
        let digest = self.digest();
        targets.into_iter().filter_map(|to| self.send(to, &digest)).collect()
    }

    fn receive(&mut self, from: NodeId, message: &[u8], now_ms: u64) -> Vec<OutgoingMessage> {
        self.now_ms = self.now_ms.max(now_ms);
        match Message::decode(message) {
            Some(Message::Digest { own: (card, heartbeat), ages }) => {
                if card.is_sound() && card.member.id == from {
                    self.merge(card, heartbeat);
                }
                self.answer(from, ages)
            }
            Some(Message::News { cards, wanted }) => {
                for (card, heartbeat) in cards.into_iter().take(MAX_MEMBERS) {
                    if card.is_sound() {
                        self.merge(card, heartbeat);
                    }
                }
                let wanted: Vec<NodeId> = wanted.into_iter().take(MAX_MEMBERS).map(NodeId).collect();
                let known = wanted.iter().filter_map(|id| self.known.get(id));
                let cards: Vec<_> = known.map(|known| (known.card.clone(), known.heartbeat)).collect();
                if cards.is_empty() {
                    return Vec::new();
                }
                self.send(from, &Message::News { cards, wanted: Vec::new() }).into_iter().collect()
            }
            None => Vec::new(),
        }
    }

    fn view(&self) -> Vec<MemberView> {
        let view = |known: &Known| MemberView {
            member: known.card.member.clone(),
            state: match (known.card.left, self.is_suspected(known)) {
                (true, _) => MemberState::Left,
                (false, true) => MemberState::Suspected,
                (false, false) => MemberState::Alive,
            },
        };
        self.known.values().map(view).collect()
    }

    fn publish(&mut self, name: &str, value: &[u8]) {
        let own = self.own();
        let value = value[..value.len().min(MAX_METADATA_BYTES)].to_vec();
        if own.card.metadata.len() >= MAX_METADATA && !own.card.metadata.contains_key(name) {
            return;
        }
        if own.card.metadata.get(name) != Some(&value) {
            own.card.metadata.insert(name.to_owned(), value);
            own.card.version += 1;
        }
    }

    fn metadata(&self, of: NodeId) -> Vec<(String, Vec<u8>)> {
        let metadata = self.known.get(&of).map(|known| known.card.metadata.clone());
        metadata.unwrap_or_default().into_iter().collect()
    }

    fn join(&mut self, member: Member) -> Result<(), String> {
        if member.id != self.this && !self.known.contains_key(&member.id) {
            // Incarnation 0 is older than any card that the member itself sends.
            let card = Card { incarnation: 0, ..Card::of(member) };
            self.merge(card, 0);
        }
        Ok(())
    }

    fn leave(&mut self, node: NodeId) -> Result<(), String> {
        match self.known.get_mut(&node) {
            Some(known) => {
                known.card.left = true;
                known.card.version += 1;
                Ok(())
            }
            None => Err(format!("{node:?} is no member")),
        }
    }

    fn cluster_init(&self) -> Option<ClusterInit> {
        Some(ClusterInit { seeds: self.config.seeds.clone(), expect: self.config.expect })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(config: Config, this: &Member) -> GossipMembership {
        open(config, &PluginContext { data_folder: std::path::Path::new(""), this }).unwrap()
    }

    fn nodes(count: usize) -> Vec<GossipMembership> {
        let member = |n: usize| Member::new(&format!("n{n}"), &format!("h:{n}"), "");
        let seeds = vec!["h:0".to_owned()];
        let config = Config { seeds, expect: count, ..Config::default() };
        let mut nodes: Vec<_> = (0..count).map(|n| opened(config.clone(), &member(n))).collect();
        for node in &mut nodes[1..] {
            node.join(member(0)).unwrap();
        }
        nodes
    }

    /// Runs all nodes for which `up` returns true, in steps of 100 milliseconds. All messages
    /// between them arrive.
    fn run(nodes: &mut [GossipMembership], from_ms: u64, to_ms: u64, up: impl Fn(usize) -> bool) {
        let number = |nodes: &[GossipMembership], id: NodeId| nodes.iter().position(|node| node.this == id);
        for now in (from_ms..to_ms).step_by(100) {
            let mut mail: Vec<(usize, OutgoingMessage)> = Vec::new();
            for at in (0..nodes.len()).filter(|&at| up(at)) {
                mail.extend(nodes[at].tick(now).into_iter().map(|sent| (at, sent)));
            }
            while let Some((from, OutgoingMessage { to, message })) = mail.pop() {
                let to = number(nodes, to).expect("messages go to members");
                if up(to) {
                    let sender = nodes[from].this;
                    let answers = nodes[to].receive(sender, &message, now);
                    mail.extend(answers.into_iter().map(|sent| (to, sent)));
                }
            }
        }
    }

    fn states(node: &GossipMembership) -> Vec<MemberState> {
        let mut view = node.view();
        view.sort_by(|a, b| a.member.name.cmp(&b.member.name));
        view.into_iter().map(|view| view.state).collect()
    }

    /// Nodes that share one seed find each other within five seconds, and learn the metadata that
    /// each published.
    #[test]
    fn nodes_find_each_other_through_one_seed() {
        let mut nodes = nodes(7);
        nodes[3].publish("color", b"red");
        run(&mut nodes, 0, 5_000, |_| true);
        for node in &nodes {
            assert_eq!(states(node), vec![MemberState::Alive; 7]);
            assert_eq!(node.metadata(nodes[3].this), [("color".to_owned(), b"red".to_vec())]);
        }
    }

    /// A node that is paused for 30 s is suspected and not removed; no other node is suspected.
    /// After the pause all nodes are alive again.
    #[test]
    fn a_paused_node_is_suspected_and_not_removed() {
        let mut nodes = nodes(5);
        run(&mut nodes, 0, 5_000, |_| true);
        run(&mut nodes, 5_000, 35_000, |at| at != 2);
        for node in [0, 1, 3, 4] {
            let expected: Vec<_> =
                (0..5).map(|at| if at == 2 { MemberState::Suspected } else { MemberState::Alive }).collect();
            assert_eq!(states(&nodes[node]), expected);
        }
        run(&mut nodes, 35_000, 40_000, |_| true);
        for node in &nodes {
            assert_eq!(states(node), vec![MemberState::Alive; 5]);
        }
    }

    /// A node that restarts with another address is the same member. All nodes learn the new
    /// address, although the new run knows nothing of the old one.
    #[test]
    fn a_restart_with_a_new_address_is_the_same_member() {
        let mut nodes = nodes(4);
        nodes[2].publish("run", b"first");
        run(&mut nodes, 0, 5_000, |_| true);
        let config = nodes[2].config.clone();
        nodes[2] = opened(config, &Member::new("n2", "elsewhere:1", ""));
        nodes[2].join(Member::new("n0", "h:0", "")).unwrap();
        run(&mut nodes, 5_000, 12_000, |_| true);
        for node in &nodes {
            let view = node.view();
            assert_eq!(view.len(), 4);
            let member = view.iter().find(|view| view.member.name == "n2").unwrap();
            assert_eq!(member.member.address, "elsewhere:1");
            assert_eq!(node.metadata(member.member.id), [], "metadata of the old run is discarded");
        }
    }

    /// A node that was removed from the cluster stays in state `Left` on all other nodes.
    #[test]
    fn a_node_that_left_stays_out() {
        let mut nodes = nodes(4);
        run(&mut nodes, 0, 5_000, |_| true);
        let gone = nodes[3].this;
        nodes[0].leave(gone).unwrap();
        run(&mut nodes, 5_000, 12_000, |at| at != 3);
        for node in &nodes[..3] {
            assert_eq!(states(node)[3], MemberState::Left);
        }
    }
}
