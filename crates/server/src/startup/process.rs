//! Settings of the operating system's process.

/// Makes a panic end the process. Otherwise a panic would end only its task, and the node would go
/// on without the work of that task. If the process ends, clients turn to other nodes at once.
pub(super) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Turns off huge pages for this process. At the first access to a huge page, the kernel fills its
/// 2 MiB with zeros, and an event loop waits for that (measured in docs/benchmarks.md). A failure
/// is ignored, because the node is then only slower.
pub(super) fn disable_huge_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
