//! Quorums: state machines without IO that count replies and name the next step of a request.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::member::NodeId;

/// Number of replicas that must answer a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QuorumSize {
    /// The number in the bucket's definition.
    #[default]
    Default,
    /// Exactly this number.
    Count(u8),
    /// More than half of the key's replicas.
    Majority,
    /// All of the key's replicas.
    All,
}

impl QuorumSize {
    /// Returns the number for a key with `n` replicas. `Default` counts as a majority.
    pub fn of(self, n: u8) -> u8 {
        match self {
            QuorumSize::Count(count) => count,
            QuorumSize::Majority | QuorumSize::Default => n / 2 + 1,
            QuorumSize::All => n,
        }
    }
}

impl std::str::FromStr for QuorumSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "quorum" => Ok(QuorumSize::Majority),
            "all" => Ok(QuorumSize::All),
            number => match number.parse() {
                Ok(count) if count > 0 => Ok(QuorumSize::Count(count)),
                _ => Err(format!("{number:?}: use \"quorum\", \"all\", or a number of at least 1")),
            },
        }
    }
}

impl std::fmt::Display for QuorumSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            QuorumSize::Default => f.write_str("default"),
            QuorumSize::Count(count) => write!(f, "{count}"),
            QuorumSize::Majority => f.write_str("quorum"),
            QuorumSize::All => f.write_str("all"),
        }
    }
}

impl Serialize for QuorumSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            QuorumSize::Count(count) => serializer.serialize_u8(*count),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for QuorumSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = QuorumSize;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"quorum\", \"all\", or a number of at least 1")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<QuorumSize, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<QuorumSize, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<QuorumSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The next step of a request after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// No step: more replies must arrive first.
    Wait,
    /// A request to one more replica.
    Ask(NodeId),
    /// The end: enough replicas have answered.
    Reached,
    /// The end: too few replicas are left that may still answer.
    Impossible,
}

/// A read's quorum: R replies from the key's live replicas, asked in the order that the caller
/// gives. One more replica is asked whenever one fails or is slow.
#[derive(Clone, Debug)]
pub struct ReadQuorum {
    required: usize,
    candidates: Vec<NodeId>,
    asked: usize,
    replied: Vec<NodeId>,
    failed: usize,
}

impl ReadQuorum {
    /// Begins a read that needs `required` replies. `candidates` are the key's live replicas, in
    /// the order in which to ask them.
    ///
    /// # Errors
    /// The number of candidates, if it is smaller than `required`.
    pub fn new(required: u8, candidates: Vec<NodeId>) -> Result<ReadQuorum, u8> {
        if candidates.len() < required as usize {
            return Err(candidates.len() as u8);
        }
        let required = required as usize;
        Ok(ReadQuorum { required, candidates, asked: required, replied: Vec::new(), failed: 0 })
    }

    /// Returns the replicas to ask at once: exactly R, because each reply costs its replica a read.
    pub fn first_asked(&self) -> &[NodeId] {
        &self.candidates[..self.required]
    }

    /// Counts a replica's reply. A second reply of the same replica does not count. A reply of a
    /// replica that was not asked does not count either.
    pub fn reply(&mut self, from: NodeId) -> Step {
        if !self.replied.contains(&from) && self.candidates[..self.asked].contains(&from) {
            self.replied.push(from);
        }
        if self.replied.len() >= self.required { Step::Reached } else { Step::Wait }
    }

    /// Counts a failed replica, and asks the next candidate instead.
    pub fn failure(&mut self) -> Step {
        self.failed += 1;
        match self.ask_next() {
            Step::Wait if self.asked - self.failed < self.required => Step::Impossible,
            step => step,
        }
    }

    /// Returns the candidate that would be asked next.
    pub fn next_candidate(&self) -> Option<NodeId> {
        self.candidates.get(self.asked).copied()
    }

    /// Asks one more replica, if there is one, because a reply is later than usual (a hedge).
    pub fn slow(&mut self) -> Step {
        self.ask_next()
    }

    /// Returns the replicas that have answered.
    pub fn replied(&self) -> &[NodeId] {
        &self.replied
    }

    fn ask_next(&mut self) -> Step {
        match self.candidates.get(self.asked) {
            Some(&next) => {
                self.asked += 1;
                Step::Ask(next)
            }
            None => Step::Wait,
        }
    }
}

/// A write's quorum: W acks from each replica set. There is one replica set. During a layout change
/// there is one for each layout that writes use.
///
/// Acks are counted for replicas (*targets*): a fallback's ack counts for the replica that it keeps
/// the write for.
#[derive(Clone, Debug)]
pub struct WriteQuorum {
    sets: SmallVec<[Set; 1]>,
    acked: Vec<NodeId>,
}

#[derive(Clone, Debug)]
struct Set {
    required: usize,
    /// Replicas of the set. `None`: all nodes that the write is sent to.
    members: Option<Vec<NodeId>>,
    outstanding: usize,
    acked: usize,
}

impl Set {
    fn has(&self, target: NodeId) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(&target))
    }

    fn step(&self) -> Step {
        if self.acked >= self.required {
            Step::Reached
        } else if self.acked + self.outstanding < self.required {
            Step::Impossible
        } else {
            Step::Wait
        }
    }
}

impl WriteQuorum {
    /// Begins a write that needs `required` acks of the nodes it will be sent to. It has been sent
    /// to none yet.
    pub fn new(required: u8) -> WriteQuorum {
        let set = Set { required: required.into(), members: None, outstanding: 0, acked: 0 };
        WriteQuorum { sets: SmallVec::from_buf([set]), acked: Vec::new() }
    }

    /// Begins a write that needs acks in each of several replica sets, given as (number of acks,
    /// replicas).
    pub fn of_sets<'a>(sets: impl Iterator<Item = (u8, &'a [NodeId])>) -> WriteQuorum {
        let set = |(required, members): (u8, &[NodeId])| Set {
            required: required.into(),
            members: Some(members.to_vec()),
            outstanding: 0,
            acked: 0,
        };
        WriteQuorum { sets: sets.map(set).collect(), acked: Vec::new() }
    }

    /// Notes that the write was sent to a node, for the replica `target`.
    pub fn sent(&mut self, target: NodeId) {
        self.sets.iter_mut().filter(|set| set.has(target)).for_each(|set| set.outstanding += 1);
    }

    /// Counts an ack of `from` for the replica `target`. Call it at most once for each target.
    pub fn ack(&mut self, target: NodeId, from: NodeId) -> Step {
        if !self.acked.contains(&from) {
            self.acked.push(from);
        }
        for set in self.sets.iter_mut().filter(|set| set.has(target)) {
            set.acked += 1;
            set.outstanding = set.outstanding.saturating_sub(1);
        }
        self.step()
    }

    /// Counts a failure for the replica `target`: the node that was sent the write failed, or can
    /// no longer be reached.
    pub fn failure(&mut self, target: NodeId) -> Step {
        for set in self.sets.iter_mut().filter(|set| set.has(target)) {
            set.outstanding = set.outstanding.saturating_sub(1);
        }
        self.step()
    }

    /// Returns the nodes that acked.
    pub fn acked(&self) -> &[NodeId] {
        &self.acked
    }

    /// Returns `Reached` if every set has its acks, `Impossible` if a set can no longer get them,
    /// and `Wait` otherwise.
    pub fn step(&self) -> Step {
        let steps = || self.sets.iter().map(Set::step);
        if steps().any(|step| step == Step::Impossible) {
            Step::Impossible
        } else if steps().all(|step| step == Step::Reached) {
            Step::Reached
        } else {
            Step::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    /// A read asks R replicas, replaces a failed one by the next, and fails only when too few are
    /// left.
    #[test]
    fn read_replaces_failed_replicas() {
        let mut read = ReadQuorum::new(2, vec![A, B, C]).unwrap();
        assert_eq!(read.first_asked(), [A, B]);
        assert_eq!(read.reply(A), Step::Wait);
        assert_eq!(read.failure(), Step::Ask(C));
        assert_eq!(read.clone().reply(C), Step::Reached);
        assert_eq!(read.failure(), Step::Impossible);
        assert_eq!(ReadQuorum::new(3, vec![A, B]).unwrap_err(), 2);
    }

    /// A hedge asks one more replica, but the read still needs R replies.
    #[test]
    fn hedge_still_needs_r_replies() {
        let mut read = ReadQuorum::new(2, vec![A, B, C]).unwrap();
        assert_eq!(read.slow(), Step::Ask(C));
        assert_eq!(read.slow(), Step::Wait);
        assert_eq!(read.reply(C), Step::Wait);
        assert_eq!(read.failure(), Step::Wait);
        assert_eq!(read.reply(A), Step::Reached);
    }

    /// Repeated replies of one replica count once. A reply of a replica that was not asked does not
    /// count.
    #[test]
    fn repeated_and_unasked_replies_do_not_count() {
        let mut read = ReadQuorum::new(2, vec![A, B, C]).unwrap();
        assert_eq!(read.reply(A), Step::Wait);
        assert_eq!(read.reply(A), Step::Wait);
        assert_eq!(read.reply(C), Step::Wait);
    }

    fn sent(required: u8, to: &[NodeId]) -> WriteQuorum {
        let mut write = WriteQuorum::new(required);
        to.iter().for_each(|&target| write.sent(target));
        write
    }

    /// During a layout change, an ack counts in every set that contains its replica, and in no
    /// other.
    #[test]
    fn a_write_needs_its_acks_in_every_set() {
        const D: NodeId = NodeId(4);
        let sets: [(u8, &[NodeId]); 2] = [(2, &[A, B, C]), (2, &[B, C, D])];
        let mut write = WriteQuorum::of_sets(sets.into_iter());
        [A, B, C, D].into_iter().for_each(|target| write.sent(target));
        assert_eq!(write.ack(A, A), Step::Wait);
        assert_eq!(write.clone().ack(B, B), Step::Wait);
        assert_eq!(write.clone().ack(D, D), Step::Wait);
        let mut fails = write.clone();
        assert_eq!(write.ack(B, B), Step::Wait);
        assert_eq!(write.ack(D, D), Step::Reached);
        assert_eq!(fails.failure(B), Step::Wait);
        assert_eq!(fails.failure(D), Step::Impossible);
    }

    /// A write is impossible as soon as the outstanding acks cannot complete W. It is still
    /// possible while a fallback that was sent the write too has not answered.
    #[test]
    fn write_fails_as_early_as_it_can() {
        let mut write = sent(3, &[A, B, C]);
        assert_eq!(write.ack(A, A), Step::Wait);
        let mut with_fallback = write.clone();
        assert_eq!(write.failure(B), Step::Impossible);
        with_fallback.sent(B);
        assert_eq!(with_fallback.failure(B), Step::Wait);
        assert_eq!(sent(3, &[A, B]).step(), Step::Impossible);
    }
}
