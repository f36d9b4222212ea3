//! When a request has enough answers: pure machines, fed with replies, that say what to do next.

use crate::layout::NodeId;

/// What to do after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Wait for more replies.
    Wait,
    /// Ask this replica, too.
    Ask(NodeId),
    /// Enough have answered.
    Reached,
    /// There are not enough replicas left.
    Impossible,
}

/// A read: R replies out of a key's live replicas, nearest first, one more whenever one fails or is slow.
#[derive(Clone, Debug)]
pub struct ReadQuorum {
    required: usize,
    candidates: Vec<NodeId>,
    asked: usize,
    replied: Vec<NodeId>,
    failed: usize,
}

impl ReadQuorum {
    /// A read of `required` of the `candidates`: the key's live replicas in the order in which to ask them.
    ///
    /// # Errors
    /// How many there are, if that is fewer than required.
    pub fn new(required: u8, candidates: Vec<NodeId>) -> Result<ReadQuorum, u8> {
        if candidates.len() < required as usize {
            return Err(candidates.len() as u8);
        }
        let required = required as usize;
        Ok(ReadQuorum { required, candidates, asked: required, replied: Vec::new(), failed: 0 })
    }

    /// Whom to ask at once: exactly R, since each reply costs its replica a read.
    pub fn first_asked(&self) -> &[NodeId] {
        &self.candidates[..self.required]
    }

    /// A replica answered. A second answer of one replica counts for nothing.
    pub fn reply(&mut self, from: NodeId) -> Step {
        if !self.replied.contains(&from) && self.candidates[..self.asked].contains(&from) {
            self.replied.push(from);
        }
        if self.replied.len() >= self.required { Step::Reached } else { Step::Wait }
    }

    /// A replica failed: the next one takes its place.
    pub fn failure(&mut self) -> Step {
        self.failed += 1;
        match self.ask_next() {
            Step::Wait if self.asked - self.failed < self.required => Step::Impossible,
            step => step,
        }
    }

    /// Whom the next failure would be replaced by.
    pub fn next_candidate(&self) -> Option<NodeId> {
        self.candidates.get(self.asked).copied()
    }

    /// A reply is later than usual: ask one more, if there is one (a hedge).
    pub fn slow(&mut self) -> Step {
        self.ask_next()
    }

    /// The replicas that have answered.
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

/// A write: W acks of those who were sent it, and who count.
#[derive(Clone, Debug)]
pub struct WriteQuorum {
    required: usize,
    outstanding: usize,
    acked: Vec<NodeId>,
}

impl WriteQuorum {
    /// A write that needs `required` acks, and was sent to nobody yet.
    pub fn new(required: u8) -> WriteQuorum {
        WriteQuorum { required: required as usize, outstanding: 0, acked: Vec::new() }
    }

    /// A replica holds the write. A second ack of one replica counts for nothing.
    pub fn ack(&mut self, from: NodeId) -> Step {
        if !self.acked.contains(&from) {
            self.acked.push(from);
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        self.step()
    }

    /// One more was sent the write.
    pub fn sent(&mut self) {
        self.outstanding += 1;
    }

    /// A replica failed, or can't be heard from any more.
    pub fn failure(&mut self) -> Step {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.step()
    }

    /// The replicas that acked.
    pub fn acked(&self) -> &[NodeId] {
        &self.acked
    }

    /// Whether enough acked, may still, or can't any more.
    pub fn step_now(&self) -> Step {
        self.step()
    }

    fn step(&self) -> Step {
        if self.acked.len() >= self.required {
            Step::Reached
        } else if self.acked.len() + self.outstanding < self.required {
            Step::Impossible
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

    /// A read asks R, replaces a failed replica by the next, and gives up only when too few are left.
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

    /// A hedge asks one more replica but does not lower what is required.
    #[test]
    fn hedge_still_needs_r_replies() {
        let mut read = ReadQuorum::new(2, vec![A, B, C]).unwrap();
        assert_eq!(read.slow(), Step::Ask(C));
        assert_eq!(read.slow(), Step::Wait);
        assert_eq!(read.reply(C), Step::Wait);
        assert_eq!(read.failure(), Step::Wait);
        assert_eq!(read.reply(A), Step::Reached);
    }

    /// One replica's repeated answers are one answer, and an answer nobody asked for is none.
    #[test]
    fn repeated_and_unasked_replies_do_not_count() {
        let mut read = ReadQuorum::new(2, vec![A, B, C]).unwrap();
        assert_eq!(read.reply(A), Step::Wait);
        assert_eq!(read.reply(A), Step::Wait);
        assert_eq!(read.reply(C), Step::Wait);
        let mut write = sent(2, 3);
        assert_eq!(write.ack(A), Step::Wait);
        assert_eq!(write.ack(A), Step::Wait);
        assert_eq!(write.ack(B), Step::Reached);
    }

    fn sent(required: u8, to: usize) -> WriteQuorum {
        let mut write = WriteQuorum::new(required);
        (0..to).for_each(|_| write.sent());
        write
    }

    /// A write is impossible as soon as the acks to come cannot make W, and not while a fallback was sent it, too.
    #[test]
    fn write_fails_as_early_as_it_can() {
        let mut write = sent(3, 3);
        assert_eq!(write.ack(A), Step::Wait);
        let mut with_fallback = write.clone();
        assert_eq!(write.failure(), Step::Impossible);
        with_fallback.sent();
        assert_eq!(with_fallback.failure(), Step::Wait);
        assert_eq!(sent(3, 2).step_now(), Step::Impossible);
    }
}
