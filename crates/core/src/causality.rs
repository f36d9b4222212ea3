//! Who wrote what, and who has seen it: actors, dots and causal contexts.

use std::fmt;

use crate::clock::Stamp;

/// One unbroken run of memory of one node over one partition: a random number, new at every start of a process and
/// whenever a node begins to hold the partition (again).
///
/// Since an actor never forgets an event it issued, "all of its events up to t" is a true statement about whoever
/// holds its event t. (Clocks reused after amnesia are the kv679 family of Riak's faults.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u64);

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The name of one write. No dot ever names two values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// Who coordinated the write.
    pub actor: Actor,
    /// When, on that actor's clock.
    pub stamp: Stamp,
}

/// A set of dots: a version vector (per actor, *all* of its events on this key up to a stamp) and extra dots above it.
///
/// Used twice: for what has been replaced in an object, and for what a client has seen.
///
/// # Invariants
/// Both lists are sorted and free of repetitions, and no extra dot is covered by the vector: one set, one
/// representation, so that equality and digests compare sets.
///
/// Source: Preguiça et al., *Dotted Version Vectors*, 2010; the set of extra dots generalises the single dot.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CausalContext {
    vector: Vec<(Actor, Stamp)>,
    extra: Vec<Dot>,
}

impl CausalContext {
    /// The set that contains no dot.
    pub const EMPTY: CausalContext = CausalContext { vector: Vec::new(), extra: Vec::new() };

    /// Builds a context from parts that come from outside, or `None` if they break an invariant.
    pub fn from_parts(vector: Vec<(Actor, Stamp)>, extra: Vec<Dot>) -> Option<CausalContext> {
        let sorted = vector.windows(2).all(|w| w[0].0 < w[1].0) && extra.windows(2).all(|w| w[0] < w[1]);
        let context = CausalContext { vector, extra };
        let canonical = sorted && context.extra.iter().all(|dot| dot.stamp > context.up_to(dot.actor));
        canonical.then_some(context)
    }

    /// Per actor, sorted: all of its events up to this stamp are in the set.
    pub fn vector(&self) -> &[(Actor, Stamp)] {
        &self.vector
    }

    /// Single dots above the vector, sorted. Normally none.
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

    /// Adds one dot and claims nothing about the actor's other events.
    pub fn add_dot(&mut self, dot: Dot) {
        if !self.contains(dot)
            && let Err(at) = self.extra.binary_search(&dot)
        {
            self.extra.insert(at, dot);
        }
    }

    /// Adds *all* events of the actor up to the stamp.
    ///
    /// Right only for whoever holds them all: an object that holds an actor's event holds its earlier ones, since
    /// replicas are sent merged objects and an actor forgets nothing.
    pub fn raise(&mut self, actor: Actor, stamp: Stamp) {
        match self.vector.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.vector[at].1 = self.vector[at].1.max(stamp),
            Err(at) => self.vector.insert(at, (actor, stamp)),
        }
        if !self.extra.is_empty() {
            self.drop_covered();
        }
    }

    /// Adds the dots of `other`. True if any was new.
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

    /// The newest stamp of any dot in the set.
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
