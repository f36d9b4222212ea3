//! The rules of a run, and a violation of one.

/// A rule that a run must keep. The numbers are those of `docs/reliability.md`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// 1. An acked write is present, or a write that saw it replaced it, if fewer than W of its
    ///    acking nodes lost their disks.
    AckedWritesSurvive,
    /// 2. Every value was written by a client.
    NoInventedValue,
    /// 3. A version that an acked write replaced or deleted does not come back.
    NothingReturns,
    /// 4. Quorum reads return acked writes, and never an older state than an earlier quorum read.
    ReadsGoForward,
    /// 5. In the end all replicas are identical and no hint is left.
    Convergence,
    /// 6. A read shows a write and its retries as one value.
    RetriesAreOne,
    /// 7. A write appears whole or not at all.
    Whole,
    /// 8. No dot names two values, stamps respect causality, and no client's context covers a
    ///    version that the client has not seen.
    Causality,
    /// No task panics, and the cluster becomes ready.
    Crash,
}

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The broken rule.
    pub rule: Rule,
    /// Description for people, with the node, the key and the versions.
    pub text: String,
}
