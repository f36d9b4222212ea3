//! The source of time and random numbers, which a simulation replaces by its own.

/// A node's source of wall time and random numbers. Timers are not part of it: they use the async
/// runtime's clock, which a simulation controls anyway.
pub trait Environment: Send + Sync + 'static {
    /// Returns the wall clock, in milliseconds since 1970. It may jump.
    fn wall_ms(&self) -> u64;

    /// Returns a monotonic clock, in milliseconds from an arbitrary start. Code outside of the
    /// event loop checks deadlines by this clock.
    fn monotonic_ms(&self) -> u64;

    /// Returns a random number that cannot be predicted or repeated. In a simulation it comes from
    /// the seed.
    fn random(&self) -> u64;
}
