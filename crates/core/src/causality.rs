//! Actors, dots and causal contexts: the names of writes, and the sets of writes that a client or a
//! replica has seen.

use std::fmt;

use crate::clock::Stamp;

/// A random number under which one run of a node's process mints the writes of one partition.
///
/// A node draws a new actor when it starts, and when it begins to hold the partition again. It also
/// does so when a change that had been applied could not be committed. As a fallback, a node mints
/// under a separate actor.
///
/// An actor never forgets a write that it minted. A replica that has seen the write of stamp t has
/// therefore seen all earlier writes of that actor to the key. (An actor that is used again after a
/// loss of memory breaks this: see the kv679 family of faults in Riak.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u64);

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The name of one write. No dot names two values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// The actor that minted the write.
    pub actor: Actor,
    /// The time of the write, by the hybrid clock of the actor's node.
    pub stamp: Stamp,
}

/// A set of dots: a version vector, and extra dots that the vector does not cover. The vector has
/// one stamp per actor: *all* dots of the actor for this key, up to that stamp, are in the set.
///
/// An object keeps its replaced versions in such a set. A client has one for the versions that it
/// has seen.
///
/// # Invariants
/// Both lists are sorted and free of repetitions, and no extra dot is covered by the vector. So
/// each set has exactly one representation: equality and digests compare sets.
///
/// Source: Preguiça et al., *Dotted Version Vectors*, 2010; the set of extra dots generalises the
/// single dot.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CausalContext {
    vector: Vec<(Actor, Stamp)>,
    extra: Vec<Dot>,
}

impl CausalContext {
    /// The empty set.
    pub const EMPTY: CausalContext = CausalContext { vector: Vec::new(), extra: Vec::new() };

    /// Builds a context from parts that come from a disk, a peer or a client. Returns `None` if
    /// they break an invariant.
    pub fn from_parts(vector: Vec<(Actor, Stamp)>, extra: Vec<Dot>) -> Option<CausalContext> {
        let sorted = vector.windows(2).all(|w| w[0].0 < w[1].0) && extra.windows(2).all(|w| w[0] < w[1]);
        let context = CausalContext { vector, extra };
        let canonical = sorted && context.extra.iter().all(|dot| dot.stamp > context.up_to(dot.actor));
        canonical.then_some(context)
    }

    /// Returns the version vector, sorted by actor. All dots of an actor up to its stamp are in the
    /// set.
    pub fn vector(&self) -> &[(Actor, Stamp)] {
        &self.vector
    }

    /// Returns the single dots that the vector does not cover, sorted. Normally there are none.
    pub fn extra(&self) -> &[Dot] {
        &self.extra
    }

    /// True if the set has no dot.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.extra.is_empty()
    }

    fn up_to(&self, actor: Actor) -> Stamp {
        match self.vector.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.vector[at].1,
            Err(_) => Stamp::ZERO,
        }
    }

    /// True if `dot` is in the set.
    pub fn contains(&self, dot: Dot) -> bool {
        dot.stamp <= self.up_to(dot.actor) || self.extra.binary_search(&dot).is_ok()
    }

    /// Adds one dot. It says nothing about the actor's other dots.
    pub fn add_dot(&mut self, dot: Dot) {
        if !self.contains(dot)
            && let Err(at) = self.extra.binary_search(&dot)
        {
            self.extra.insert(at, dot);
        }
    }

    /// Adds *all* dots of the actor up to the stamp.
    ///
    /// The caller must have seen them all. This is true of an object with a live dot of the actor.
    /// Its live and replaced versions include the actor's earlier dots, because replicas are sent
    /// merged objects and an actor forgets nothing.
    pub fn raise(&mut self, actor: Actor, stamp: Stamp) {
        match self.vector.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.vector[at].1 = self.vector[at].1.max(stamp),
            Err(at) => self.vector.insert(at, (actor, stamp)),
        }
        if !self.extra.is_empty() {
            self.drop_covered();
        }
    }

    /// Adds the dots of `other`. Returns true if any of them was new.
    pub fn union(&mut self, other: &CausalContext) -> bool {
        let mut grown = false;
        if self.vector != other.vector {
            for &(actor, stamp) in &other.vector {
                match self.vector.binary_search_by_key(&actor, |entry| entry.0) {
                    Ok(at) if self.vector[at].1 >= stamp => continue,
                    Ok(at) => self.vector[at].1 = stamp,
                    Err(at) => self.vector.insert(at, (actor, stamp)),
                }
                grown = true;
            }
        }
        for &dot in &other.extra {
            if !self.contains(dot)
                && let Err(at) = self.extra.binary_search(&dot)
            {
                self.extra.insert(at, dot);
                grown = true;
            }
        }
        if !self.extra.is_empty() {
            self.drop_covered();
        }
        grown
    }

    /// Returns the newest stamp of all dots in the set, or [`Stamp::ZERO`] if it is empty.
    pub fn newest(&self) -> Stamp {
        let vector = self.vector.iter().map(|entry| entry.1);
        vector.chain(self.extra.iter().map(|dot| dot.stamp)).max().unwrap_or(Stamp::ZERO)
    }

    fn drop_covered(&mut self) {
        let CausalContext { vector, extra } = self;
        extra.retain(|dot| match vector.binary_search_by_key(&dot.actor, |entry| entry.0) {
            Ok(at) => dot.stamp > vector[at].1,
            Err(_) => true,
        });
    }
}
