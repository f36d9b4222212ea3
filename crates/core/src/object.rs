//! What a replica stores under a key, and how two replicas' states become one.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::causality::{CausalContext, Dot};
use crate::clock::Stamp;
use crate::planted::{Bug, planted};

/// A number that the client gives each write and keeps over its retries; nobody else's is likely to be the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What a write says: a value, or that the key is deleted. A tombstone is an object state, never absence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// The client's bytes.
    Value(Bytes),
    /// The key was deleted.
    Tombstone,
}

impl Payload {
    /// Bytes of the value; 0 for a tombstone.
    pub fn len(&self) -> usize {
        match self {
            Payload::Value(value) => value.len(),
            Payload::Tombstone => 0,
        }
    }

    /// True if there are no bytes: an empty value, or a tombstone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One write that nothing has replaced yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// The write's name.
    pub dot: Dot,
    /// The client's id for the write, equal over its retries.
    pub request: RequestId,
    /// What was written.
    pub payload: Payload,
}

/// The id of a write that was replaced, and when that was seen: lets a late retry be recognised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplacedRequest {
    /// The replaced write's request id.
    pub request: RequestId,
    /// Wall clock of the coordinator that replaced it, milliseconds since 1970.
    pub replaced_ms: u64,
}

impl ReplacedRequest {
    /// Newest first; among equals by id, so that merges commute.
    fn order(&self) -> (std::cmp::Reverse<u64>, RequestId) {
        (std::cmp::Reverse(self.replaced_ms), self.request)
    }
}

/// Most ids of replaced writes an object remembers. On a key overwritten more often than this within the longest
/// deadline the oldest are forgotten first, and a retry that comes later than that may show once more as a sibling.
pub const MAX_REPLACED_REQUESTS: usize = 64;

/// Most dots above the version vector in one object. A put that would add one more is asked to read first.
pub const MAX_EXTRA_DOTS: usize = 64;

/// Most bytes of values that a write may leave side by side. What three replicas wrote apart and then merge still fits a
/// message.
pub const MAX_OBJECT_BYTES: usize = 20 * 1024 * 1024;

/// A 64-bit hash of an object's *logical* state. Two replicas agree on a key if and only if these are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Digest(pub u64);

/// Whether stored objects keep every concurrent version or only the newest one.
///
/// The second is the one exception to "merging never drops a version that nothing replaced": the maximum of
/// (stamp, actor) respects causality (a write is stamped beyond all it saw) and is a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeRule {
    /// Concurrent versions stay beside each other until a write replaces them.
    KeepAll,
    /// Only the version with the greatest (stamp, actor) stays.
    KeepNewest,
}

/// What a replica stores under a key.
///
/// # Invariants
/// - No live version's dot is in `replaced`.
/// - Live versions are sorted by dot, without repetitions.
/// - Remembered request ids are sorted by (newest first, id), at most [`MAX_REPLACED_REQUESTS`].
///
/// A version is gone only if somebody says that it was replaced, never because somebody does not have it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Object {
    replaced: CausalContext,
    live: Vec<Version>,
    replaced_requests: Vec<ReplacedRequest>,
}

/// What a write replaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteMode {
    /// Everything the coordinator holds, and what this client last saw of the key: "overwrite".
    Overwrite {
        /// What the client last saw, or the empty context.
        seen: CausalContext,
    },
    /// Exactly what this context contains. The empty one makes the write concurrent with everything.
    Exactly(CausalContext),
}

impl WriteMode {
    /// What the client itself says it has seen.
    pub fn own_context(&self) -> &CausalContext {
        match self {
            WriteMode::Overwrite { seen } => seen,
            WriteMode::Exactly(context) => context,
        }
    }
}

/// One write as its coordinator applies it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The client's id for it.
    pub request: RequestId,
    /// A value, or a tombstone.
    pub payload: Payload,
    /// What it replaces.
    pub mode: WriteMode,
}

/// Bounds that a write is held to. They bind clients only, never merges.
#[derive(Clone, Copy, Debug)]
pub struct WriteLimits {
    /// A write with the empty context is refused when this many versions already lie side by side.
    pub max_siblings: usize,
    /// How long ids of replaced writes are remembered: the longest deadline of a request, milliseconds.
    pub remember_requests_ms: u64,
}

/// What a write came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// What the client has now seen of the key: to be given back with its next write.
    pub context: CausalContext,
    /// Live versions beside the written one, which this client has not seen.
    pub conflict: bool,
    /// False if the write had been applied before (a retry): nothing was minted.
    pub fresh: bool,
}

/// Why a write was not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteRefusal {
    /// The empty context would add a sibling to an object that has the most allowed.
    TooManySiblings {
        /// How many there are.
        siblings: usize,
        /// The bucket's limit.
        limit: usize,
    },
    /// The versions side by side would be larger than [`MAX_OBJECT_BYTES`]: read, and write with that context.
    TooLarge {
        /// How many bytes they would be.
        bytes: usize,
    },
    /// The context would leave more than [`MAX_EXTRA_DOTS`] single dots: read first, its context compacts them.
    TooManyDots {
        /// How many there would be.
        dots: usize,
    },
}

impl Object {
    /// Builds an object from parts that come from outside, or `None` if they break an invariant.
    pub fn from_parts(
        replaced: CausalContext,
        live: Vec<Version>,
        replaced_requests: Vec<ReplacedRequest>,
    ) -> Option<Object> {
        let sorted = live.windows(2).all(|w| w[0].dot < w[1].dot);
        let disjoint = live.iter().all(|version| !replaced.contains(version.dot));
        let bounded = replaced_requests.len() <= MAX_REPLACED_REQUESTS;
        let in_order = replaced_requests.windows(2).all(|w| w[0].order() < w[1].order());
        (sorted && disjoint && bounded && in_order).then_some(Object { replaced, live, replaced_requests })
    }

    /// What has been replaced.
    pub fn replaced(&self) -> &CausalContext {
        &self.replaced
    }

    /// The versions that nothing has replaced, sorted by dot; tombstones included.
    pub fn live(&self) -> &[Version] {
        &self.live
    }

    /// Ids of writes seen replaced lately. Outside the digest: replicas may differ in them.
    pub fn replaced_requests(&self) -> &[ReplacedRequest] {
        &self.replaced_requests
    }

    /// The join of two replicas' states: `replaced` is the union, live is the union minus `replaced`. False only if this
    /// one is as it was: the other knew nothing that it did not.
    ///
    /// Commutative, associative and idempotent in what is replaced and what is live (property-tested); the remembered
    /// request ids are outside of that, as they are outside the digest. `rule` must be the bucket's.
    pub fn merge(&mut self, other: &Object, rule: MergeRule) -> bool {
        let mut learnt = self.replaced.union(&other.replaced);
        let replaced = &self.replaced;
        if learnt {
            self.live.retain(|version| !replaced.contains(version.dot));
        }
        for version in &other.live {
            if !replaced.contains(version.dot)
                && let Err(at) = self.live.binary_search_by_key(&version.dot, |v| v.dot)
            {
                self.live.insert(at, version.clone());
                learnt = true;
            }
        }
        learnt |= self.keep(rule);
        for seen in &other.replaced_requests {
            learnt |= self.remember(*seen);
        }
        learnt
    }

    /// True if a merge with the other keeps none of the other's versions, but those that are here, too.
    pub fn replaces_all_of(&self, other: &Object) -> bool {
        let is_here = |dot| self.live.binary_search_by_key(&dot, |version| version.dot).is_ok();
        other.live.iter().all(|version| self.replaced.contains(version.dot) || is_here(version.dot))
    }

    /// True if nothing is left of the key but that it was deleted: what may be reaped.
    pub fn is_tombstone(&self) -> bool {
        !self.live.is_empty() && self.live.iter().all(|version| version.payload == Payload::Tombstone)
    }

    /// The newest version and what its own write replaced, nothing else: what replicas must *not* be sent (a planted bug).
    #[doc(hidden)]
    pub fn bare(&self, write: &Write) -> Object {
        let newest: Vec<Version> =
            self.live.iter().max_by_key(|version| version.dot.stamp).cloned().into_iter().collect();
        let replaced = match &write.mode {
            WriteMode::Overwrite { .. } => self.replaced.clone(),
            WriteMode::Exactly(context) => context.clone(),
        };
        Object { replaced, live: newest, replaced_requests: Vec::new() }
    }

    /// The newest stamp of anything in it.
    pub fn newest(&self) -> Stamp {
        let live = self.live.iter().map(|version| version.dot.stamp).max().unwrap_or(Stamp::ZERO);
        live.max(self.replaced.newest())
    }

    /// Applies a client's write: minted by `mint` beyond the newest stamp it has seen, it drops what it replaces.
    ///
    /// A request id that is live or was lately replaced mints nothing: the answer is that of the first attempt.
    ///
    /// # Errors
    /// [`WriteRefusal`]; the object is unchanged then.
    pub fn write(
        &mut self,
        write: &Write,
        rule: MergeRule,
        limits: WriteLimits,
        now_ms: u64,
        mint: impl FnOnce(Stamp) -> Dot,
    ) -> Result<Written, WriteRefusal> {
        if self.knows(write.request) && !planted(Bug::RequestIdIgnored) {
            return Ok(self.already_written(write));
        }
        let replaces = match &write.mode {
            WriteMode::Overwrite { seen } => {
                let mut all = self.context();
                all.union(seen);
                all
            }
            WriteMode::Exactly(context) => context.clone(),
        };
        let siblings = self.siblings();
        if replaces.is_empty() && siblings >= limits.max_siblings && rule == MergeRule::KeepAll {
            return Err(WriteRefusal::TooManySiblings { siblings, limit: limits.max_siblings });
        }
        let mut replaced = self.replaced.clone();
        replaced.union(&replaces);
        let dots = replaced.extra().len();
        if dots > MAX_EXTRA_DOTS && dots > self.replaced.extra().len() {
            return Err(WriteRefusal::TooManyDots { dots });
        }

        let kept = self.live.iter().filter(|version| !replaced.contains(version.dot));
        let bytes = kept.map(|version| version.payload.len()).sum::<usize>() + write.payload.len();
        if bytes > MAX_OBJECT_BYTES && rule == MergeRule::KeepAll {
            return Err(WriteRefusal::TooLarge { bytes });
        }

        let newest_live = self.live.iter().map(|version| version.dot.stamp).max().unwrap_or(Stamp::ZERO);
        let dot = mint(newest_live.max(replaced.newest()));
        self.replaced = replaced;
        self.replaced_requests
            .retain(|seen| seen.replaced_ms.saturating_add(limits.remember_requests_ms) >= now_ms);
        let (dropped, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.live)
            .into_iter()
            .partition(|version| self.replaced.contains(version.dot));
        self.live = kept;
        for version in dropped {
            self.remember(ReplacedRequest { request: version.request, replaced_ms: now_ms });
        }
        let version = Version { dot, request: write.request, payload: write.payload.clone() };
        let at = self.live.partition_point(|other| other.dot < dot);
        self.live.insert(at, version);
        self.keep(rule);

        let context = if self.live.len() > 1 && !planted(Bug::PutAnswersWholeVector) {
            let mut seen = replaces;
            seen.add_dot(dot);
            seen
        } else {
            self.context()
        };
        let mut others = self.live.iter().filter(|version| version.dot != dot);
        let conflict = others.any(|version| version.payload != Payload::Tombstone);
        Ok(Written { context, conflict, fresh: true })
    }

    /// What a reader of this object has seen: everything replaced, and per actor all up to its live versions.
    ///
    /// Only live dots raise the vector: an extra dot claims nothing below it.
    pub fn context(&self) -> CausalContext {
        let mut context = self.replaced.clone();
        for version in &self.live {
            context.raise(version.dot.actor, version.dot.stamp);
        }
        context
    }

    /// True if the write with this id is live here, or was seen replaced lately.
    pub fn knows(&self, request: RequestId) -> bool {
        self.live.iter().any(|version| version.request == request)
            || self.replaced_requests.iter().any(|seen| seen.request == request)
    }

    /// The answer to a retry of a write that this object knows: the request's own context and nothing that its client
    /// has not seen.
    pub fn already_written(&self, write: &Write) -> Written {
        let mut context = write.mode.own_context().clone();
        let mut others = false;
        for version in &self.live {
            if version.request == write.request {
                context.add_dot(version.dot);
            } else if version.payload != Payload::Tombstone {
                others = true;
            }
        }
        Written { context, conflict: others, fresh: false }
    }

    fn siblings(&self) -> usize {
        self.live.iter().filter(|version| version.payload != Payload::Tombstone).count()
    }

    /// The live values as a reader is shown them, in stamp order: no tombstones, and two live versions of one request
    /// with one value (a retry that two coordinators took) as one.
    pub fn shown(&self) -> Vec<&Version> {
        let mut shown: Vec<&Version> = Vec::with_capacity(self.live.len());
        for version in &self.live {
            let twin = shown.iter().any(|v| v.request == version.request && v.payload == version.payload);
            if version.payload != Payload::Tombstone && !twin {
                shown.push(version);
            }
        }
        shown.sort_by_key(|version| (version.dot.stamp, version.dot.actor));
        shown
    }

    /// A hash of the logical state: what is replaced and what is live. Never of serialized bytes.
    pub fn digest(&self) -> Digest {
        let mut hash = Xxh3::new();
        let mut feed = |word: u64| hash.update(&word.to_le_bytes());
        feed(self.replaced.vector().len() as u64);
        for (actor, stamp) in self.replaced.vector() {
            feed(actor.0);
            feed(stamp.0);
        }
        feed(self.replaced.extra().len() as u64);
        for dot in self.replaced.extra() {
            feed(dot.actor.0);
            feed(dot.stamp.0);
        }
        for version in &self.live {
            feed(version.dot.actor.0);
            feed(version.dot.stamp.0);
            feed(u64::from(version.payload == Payload::Tombstone));
        }
        Digest(hash.digest())
    }

    /// Applies the rule to what is live. True if this changed anything.
    fn keep(&mut self, rule: MergeRule) -> bool {
        if rule == MergeRule::KeepAll || self.live.len() < 2 {
            return false;
        }
        let mut lost = std::mem::take(&mut self.live);
        let newest = (0..lost.len()).max_by_key(|&at| (lost[at].dot.stamp, lost[at].dot.actor)).unwrap_or(0);
        self.live.push(lost.swap_remove(newest));
        // A retry of what lost must be known, too. The time is the write's own: merging reads no clock.
        for version in lost {
            let replaced_ms = version.dot.stamp.wall_ms();
            self.remember(ReplacedRequest { request: version.request, replaced_ms });
        }
        true
    }

    /// The newest are kept when there are too many. True if this changed anything.
    fn remember(&mut self, seen: ReplacedRequest) -> bool {
        let Err(at) = self.replaced_requests.binary_search_by_key(&seen.order(), ReplacedRequest::order)
        else {
            return false;
        };
        // Known with another time: the later one counts.
        if let Some(known) = self.replaced_requests.iter().position(|known| known.request == seen.request) {
            if known < at {
                return false;
            }
            self.replaced_requests.remove(known);
        }
        if at >= MAX_REPLACED_REQUESTS {
            return false;
        }
        self.replaced_requests.insert(at, seen);
        self.replaced_requests.truncate(MAX_REPLACED_REQUESTS);
        true
    }
}
