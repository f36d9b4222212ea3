//! The object that a replica stores under a key, and the merge of two replicas' objects.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::causality::{CausalContext, Dot};
use crate::clock::Stamp;
use crate::planted::{Bug, planted};

/// A random number that names a client's write in all of its attempts. Two writes are unlikely to
/// have the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// The content of a write: a value, or the tombstone of a delete. A deleted key still has an
/// object, which holds the tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// The client's bytes.
    Value(Bytes),
    /// The mark of a delete.
    Tombstone,
}

impl Payload {
    /// Returns the length of the value in bytes; 0 for a tombstone.
    pub fn len(&self) -> usize {
        match self {
            Payload::Value(value) => value.len(),
            Payload::Tombstone => 0,
        }
    }

    /// True for an empty value and for a tombstone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One write that nothing has replaced yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// The name of the write.
    pub dot: Dot,
    /// The client's id of the write, the same in all of its attempts.
    pub request: RequestId,
    /// The value or the tombstone.
    pub payload: Payload,
}

/// The id of a replaced write, and the time of the replacement. It lets a replica recognise a late
/// retry of that write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplacedRequest {
    /// The replaced write's request id.
    pub request: RequestId,
    /// Time of the replacement, in milliseconds since 1970: the wall clock of the coordinator that
    /// replaced the write. If [`MergeRule::KeepNewest`] dropped the version: the wall time of that
    /// version's own stamp.
    pub replaced_ms: u64,
}

impl ReplacedRequest {
    /// Returns the sort key: newest replacement first, then by id. So equal sets of entries are
    /// equal lists.
    fn order(&self) -> (std::cmp::Reverse<u64>, RequestId) {
        (std::cmp::Reverse(self.replaced_ms), self.request)
    }
}

/// Maximum number of replaced request ids that an object remembers. The oldest are forgotten first.
///
/// A key may be overwritten more often than this while a client still retries a write. A retry of a
/// forgotten write is applied again, and reads may show its value as a sibling.
pub const MAX_REPLACED_REQUESTS: usize = 64;

/// Maximum number of extra dots in [`Object::replaced`]: dots that the version vector does not
/// cover. A write that would add one more is refused, and its client has to read the key first.
pub const MAX_EXTRA_DOTS: usize = 64;

/// Maximum size of the values that a write may leave side by side in one object, in bytes. Replicas
/// that cannot reach each other may each accept values of this size. The merge of three such
/// objects is still smaller than the largest message (64 MiB).
pub const MAX_OBJECT_BYTES: usize = 20 * 1024 * 1024;

/// A 64-bit hash of an object's *logical* state: its replaced and its live versions, without the
/// remembered request ids. Two replicas agree on a key if and only if their digests are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Digest(pub u64);

/// The rule by which stored objects keep concurrent versions: all of them, or only the newest one.
///
/// `KeepNewest` is the only exception to "merging never drops a version that nothing replaced".
/// Keeping the maximum of (stamp, actor) is commutative, associative and idempotent. It never drops
/// a write in favour of an older one that the write has seen, because the write's stamp is later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeRule {
    /// Concurrent versions all stay until a write replaces them.
    KeepAll,
    /// Only the version with the greatest (stamp, actor) stays.
    KeepNewest,
}

/// Everything that a replica stores under a key: its live versions (those that nothing has
/// replaced), tombstones included, and the set of replaced versions.
///
/// # Invariants
/// - No live version's dot is in `replaced`.
/// - Live versions are sorted by dot, without repetitions.
/// - Remembered request ids are sorted by (newest first, id), at most [`MAX_REPLACED_REQUESTS`].
///
/// A merge drops a version only if one of the two objects says that it was replaced, or if
/// [`MergeRule::KeepNewest`] drops it. A version that one object lacks is not dropped for that reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Object {
    replaced: CausalContext,
    live: Vec<Version>,
    replaced_requests: Vec<ReplacedRequest>,
}

/// The versions that a write replaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteMode {
    /// All versions that the coordinator holds, and those that this client last saw of the key: an
    /// overwrite.
    Overwrite {
        /// The context that the client last received for the key, or the empty context if it has
        /// none.
        seen: CausalContext,
    },
    /// Exactly the versions of this context. With the empty context the write is concurrent with
    /// all other versions.
    Exactly(CausalContext),
}

impl WriteMode {
    /// Returns the context that the client sent with the write.
    pub fn own_context(&self) -> &CausalContext {
        match self {
            WriteMode::Overwrite { seen } => seen,
            WriteMode::Exactly(context) => context,
        }
    }
}

/// One write, as its coordinator applies it to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The client's id of the write.
    pub request: RequestId,
    /// The value or the tombstone.
    pub payload: Payload,
    /// The versions that the write replaces.
    pub mode: WriteMode,
}

/// Limits that an object must keep when a client's write is applied to it. Merges have no limits.
#[derive(Clone, Copy, Debug)]
pub struct WriteLimits {
    /// Maximum number of sibling values. A write with the empty context is refused if the object
    /// has this many already.
    pub max_siblings: usize,
    /// Time for which the ids of replaced writes are remembered, in milliseconds: the longest
    /// timeout of a request. By default this is 30 s. A write that may have been applied is retried
    /// for a shorter time: a client begins no retry later than 15 s after the first attempt.
    pub remember_requests_ms: u64,
}

/// The result of a write that was applied, now or by an earlier attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The context of the key's versions that the client has now seen. The client sends it with its
    /// next write.
    pub context: CausalContext,
    /// True if the object has other live values, which this client has not seen.
    pub conflict: bool,
    /// True if this attempt applied the write. False if an earlier attempt did: then no dot was
    /// minted.
    pub fresh: bool,
}

/// The reason why a write was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteRefusal {
    /// The context is empty, and the object already has as many siblings as the bucket allows.
    TooManySiblings {
        /// Siblings that the object has.
        siblings: usize,
        /// Maximum number of siblings, from the bucket's definition.
        limit: usize,
    },
    /// All siblings' values together would be larger than [`MAX_OBJECT_BYTES`]. The client has to
    /// read, and to write with the context of that read, which replaces the siblings.
    TooLarge {
        /// Size of the values together, in bytes.
        bytes: usize,
    },
    /// With the write's context, the object would have more than [`MAX_EXTRA_DOTS`] extra dots. The
    /// client has to read first: in the context of a read, the version vector covers all dots of an
    /// actor up to the actor's newest live version.
    TooManyDots {
        /// Extra dots that the write would leave.
        dots: usize,
    },
}

impl Object {
    /// Builds an object from parts that come from a disk or a peer. Returns `None` if they break an
    /// invariant.
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

    /// Returns the set of replaced versions.
    pub fn replaced(&self) -> &CausalContext {
        &self.replaced
    }

    /// Returns the live versions, sorted by dot. Tombstones are included.
    pub fn live(&self) -> &[Version] {
        &self.live
    }

    /// Returns the ids of writes that were replaced recently. They are not part of the digest,
    /// because replicas may differ in them.
    pub fn replaced_requests(&self) -> &[ReplacedRequest] {
        &self.replaced_requests
    }

    /// Merges another replica's object into this one. The replaced versions become the union of
    /// both sets. The live versions become the union of both lists, without the replaced ones.
    ///
    /// Returns true if the object changed. Under [`MergeRule::KeepNewest`] the result may be true
    /// although the object did not change. `rule` must be the bucket's.
    ///
    /// The merge is commutative, associative and idempotent in the replaced and the live versions
    /// (property-tested). These properties do not hold for the remembered request ids, which are
    /// not part of the digest either.
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

    /// True if a merge with `other` would add no live version to this object: each live version of
    /// `other` is replaced or live here already.
    pub fn replaces_all_of(&self, other: &Object) -> bool {
        let is_here = |dot| self.live.binary_search_by_key(&dot, |version| version.dot).is_ok();
        other.live.iter().all(|version| self.replaced.contains(version.dot) || is_here(version.dot))
    }

    /// True if all live versions are tombstones, and there is at least one. Only such an object may
    /// be collected.
    pub fn is_tombstone(&self) -> bool {
        !self.live.is_empty() && self.live.iter().all(|version| version.payload == Payload::Tombstone)
    }

    /// Returns an object with only the newest live version. Only a planted bug uses this: replicas
    /// must be sent the merged object, *not* this one.
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

    /// Returns the newest stamp of all live and replaced versions.
    pub fn newest(&self) -> Stamp {
        let live = self.live.iter().map(|version| version.dot.stamp).max().unwrap_or(Stamp::ZERO);
        live.max(self.replaced.newest())
    }

    /// Applies a client's write: drops the versions that it replaces, and adds the new one.
    ///
    /// `mint` makes the new version's dot. Its argument is the newest stamp of the object and of
    /// the write's context; the dot's stamp must be later. `now_ms` is the wall clock in
    /// milliseconds since 1970.
    ///
    /// Nothing is minted if the write with this request id is live or was replaced recently. The
    /// result is then that of [`Object::already_written`].
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

    /// Returns the context of a client that reads this object: all replaced versions, and all
    /// versions of each actor up to its newest live one.
    ///
    /// Only live dots advance the version vector. An extra dot says nothing about its actor's earlier
    /// versions.
    pub fn context(&self) -> CausalContext {
        let mut context = self.replaced.clone();
        for version in &self.live {
            context.raise(version.dot.actor, version.dot.stamp);
        }
        context
    }

    /// True if the write with this id is live here, or was replaced recently.
    pub fn knows(&self, request: RequestId) -> bool {
        self.live.iter().any(|version| version.request == request)
            || self.replaced_requests.iter().any(|seen| seen.request == request)
    }

    /// Returns the answer to a retry of a write that this object has already. The answer has the
    /// context that the client sent, plus the write's dot if its version is live. So the
    /// context covers only versions that the client knows.
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

    /// Returns the live values that a reader is shown, in stamp order, without tombstones.
    ///
    /// If two coordinators accepted attempts of one request, the object has two versions of it. If
    /// their values are equal, only the first is shown.
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

    /// Returns a hash of the logical state: the dots of the replaced and the live versions, and
    /// which of the live ones are tombstones. It does not depend on the encoding.
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

    /// Applies the rule to the live versions. Returns true if this changed anything.
    fn keep(&mut self, rule: MergeRule) -> bool {
        if rule == MergeRule::KeepAll || self.live.len() < 2 {
            return false;
        }
        let mut lost = std::mem::take(&mut self.live);
        let newest = (0..lost.len()).max_by_key(|&at| (lost[at].dot.stamp, lost[at].dot.actor)).unwrap_or(0);
        self.live.push(lost.swap_remove(newest));
        // A retry of a dropped write must be recognised too. Its time of replacement is that of its
        // own stamp, because a merge reads no clock.
        for version in lost {
            let replaced_ms = version.dot.stamp.wall_ms();
            self.remember(ReplacedRequest { request: version.request, replaced_ms });
        }
        true
    }

    /// Remembers a replaced request, and forgets the oldest one if there are too many. Returns true
    /// if this changed anything.
    fn remember(&mut self, seen: ReplacedRequest) -> bool {
        let Err(at) = self.replaced_requests.binary_search_by_key(&seen.order(), ReplacedRequest::order)
        else {
            return false;
        };
        // The list may have this request with another time. The later time is kept.
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
