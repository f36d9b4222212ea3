//! The hybrid logical clock, as functions of the time they are given.

use std::fmt;

/// A point of the hybrid logical clock: 48 bits of milliseconds since 1970, then 16 bits of counter.
///
/// A stamp orders the writes of one actor on one key, and breaks ties for last-write-wins. It is *not* proof of
/// causality between actors: that is what [`crate::CausalContext`] is for.
///
/// Source: Kulkarni et al., *Logical Physical Clocks*, 2014.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub u64);

const COUNTER_BITS: u32 = 16;

impl Stamp {
    /// Before every write.
    pub const ZERO: Stamp = Stamp(0);
    /// The latest stamp that may arrive from outside (the year 6429). What is beyond is refused as malformed, so that
    /// counting up from a stamp can never overflow.
    pub const MAX: Stamp = Stamp(u64::MAX >> 1);

    /// The first stamp of a millisecond.
    pub fn from_wall_ms(wall_ms: u64) -> Stamp {
        Stamp(wall_ms.min(u64::MAX >> (COUNTER_BITS + 1)) << COUNTER_BITS)
    }

    /// Milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The smallest stamp after this one.
    pub fn next(self) -> Stamp {
        Stamp(self.0 + 1)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// What one node remembers of the clock. A value: the caller stores what the functions return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HybridClock {
    /// The newest stamp this node minted or let itself be pulled to.
    pub last: Stamp,
}

impl HybridClock {
    /// The stamp for a write that has seen `newest`, at `wall_ms`: beyond everything seen, whatever the wall says.
    ///
    /// The node's own clock follows at most `max_skew_ms` ahead of the wall, so that one peer with a clock a year ahead
    /// drags nobody along: the write is stamped beyond what it saw all the same, only the clock stays.
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

    /// A stamp is beyond the node's last one, the wall, and everything the write has seen.
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

    /// A clock far ahead is passed in the stamp, but does not become this node's clock.
    #[test]
    fn a_far_clock_does_not_drag_this_one() {
        let year = 365 * 24 * 3_600_000;
        let (stamp, clock) = HybridClock::default().mint(Stamp::from_wall_ms(year), 1_000, 60_000);
        assert!(stamp > Stamp::from_wall_ms(year));
        assert_eq!(clock.last, Stamp::from_wall_ms(1_000));
    }
}
