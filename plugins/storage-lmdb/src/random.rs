//! Unit tests only: pseudo-random numbers that are the same in each run.

/// A linear congruential generator, from a fixed seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns the next number. It is less than `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}
