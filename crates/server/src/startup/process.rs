//! Settings of the operating system's process.

/// Makes a panic end the process. A panic in a task would disappear with the task, and its requests
/// with both. Ending is better: the other replicas go on.
pub(super) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Turns off huge pages. The kernel zeroes a huge page, 2 MiB, when a kilobyte of it is touched,
/// and an event loop waits for that: measured in docs/benchmarks.md. Where they cannot be turned
/// off, a node is only slower.
pub(super) fn disable_huge_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
