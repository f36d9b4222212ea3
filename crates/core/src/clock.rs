//! The hybrid logical clock, as functions of the time that the caller passes.

use std::fmt;

/// A time of the hybrid logical clock: 48 bits of milliseconds since 1970, then 16 bits of counter.
///
/// A stamp orders the writes of one actor to one key, and breaks ties for last-write-wins. It is
/// *not* proof of causality between actors: that is the purpose of [`crate::CausalContext`].
///
/// Source: Kulkarni et al., *Logical Physical Clocks*, 2014.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub u64);

const COUNTER_BITS: u32 = 16;

impl Stamp {
    /// The stamp before all writes.
    pub const ZERO: Stamp = Stamp(0);
    /// The latest stamp that is accepted from a disk or a peer (the year 6429). A later one is
    /// refused as malformed, so that counting up from a stamp never overflows.
    pub const MAX: Stamp = Stamp(u64::MAX >> 1);

    /// Returns the first stamp of a millisecond, given in milliseconds since 1970.
    pub fn from_wall_ms(wall_ms: u64) -> Stamp {
        Stamp(wall_ms.min(u64::MAX >> (COUNTER_BITS + 1)) << COUNTER_BITS)
    }

    /// Returns the milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Returns the smallest stamp after this one.
    pub fn next(self) -> Stamp {
        Stamp(self.0 + 1)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// The state of one node's clock. `mint` returns the next state, which the caller stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HybridClock {
    /// The newest stamp of this node's clock. It follows minted stamps, but never too far ahead of
    /// the wall clock.
    pub last: Stamp,
}

impl HybridClock {
    /// Returns the stamp of a write that has seen `newest`, at `wall_ms`, and the next state of the
    /// clock. The stamp is later than `newest` and `self.last`, whatever the wall clock says.
    ///
    /// The node's own clock runs at most `max_skew_ms` ahead of the wall clock. So one peer whose
    /// clock is a year ahead does not move the clocks of the others. A write that has seen a stamp
    /// from that clock still gets a later stamp. Only the node's own clock does not follow.
    pub fn mint(self, newest: Stamp, wall_ms: u64, max_skew_ms: u64) -> (Stamp, HybridClock) {
        let wall = Stamp::from_wall_ms(wall_ms);
        let stamp = self.last.next().max(wall).max(newest.next());
        let last = if stamp.wall_ms() <= wall_ms.saturating_add(max_skew_ms) {
            stamp
        } else {
            self.last.next().max(wall)
        };
        (stamp, HybridClock { last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stamp is later than the node's last one, the wall clock, and all stamps that the write has
    /// seen.
    #[test]
    fn stamps_are_beyond_everything_seen() {
        let clock = HybridClock { last: Stamp::from_wall_ms(50) };
        let (stamp, clock) = clock.mint(Stamp::ZERO, 40, 60_000);
        assert_eq!(stamp, Stamp::from_wall_ms(50).next());
        let (stamp, clock) = clock.mint(Stamp::ZERO, 60, 60_000);
        assert_eq!(stamp, Stamp::from_wall_ms(60));
        let (stamp, _) = clock.mint(Stamp::from_wall_ms(70), 60, 60_000);
        assert_eq!(stamp, Stamp::from_wall_ms(70).next());
    }

    /// A write that has seen the stamp of a clock far ahead gets a later stamp, but this node's
    /// clock does not follow.
    #[test]
    fn a_far_clock_does_not_drag_this_one() {
        let year = 365 * 24 * 3_600_000;
        let (stamp, clock) = HybridClock::default().mint(Stamp::from_wall_ms(year), 1_000, 60_000);
        assert!(stamp > Stamp::from_wall_ms(year));
        assert_eq!(clock.last, Stamp::from_wall_ms(1_000));
    }
}
