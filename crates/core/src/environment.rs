//! The time and the randomness that everything is given, so that a simulation can give its own.

/// Where a node gets wall time and random numbers from. Monotonic time is the async runtime's, which a simulation
/// drives already.
pub trait Environment: Send + Sync + 'static {
    /// The wall clock: milliseconds since 1970. May jump.
    fn wall_ms(&self) -> u64;

    /// A monotonic clock, in milliseconds from an arbitrary start, for deadlines that are checked off the event loop.
    fn monotonic_ms(&self) -> u64;

    /// A random number nobody can foresee or repeat; in a simulation, one from the seed.
    fn random(&self) -> u64;
}
