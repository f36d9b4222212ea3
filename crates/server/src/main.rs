//! The `quorate` binary: a node with the built-in plugins, and its tools.

/// Memory allocator of the process. Each request allocates and frees many small objects. mimalloc
/// does this faster than the default allocator: see docs/benchmarks.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quorate_server::main(quorate_server::Registry::built_in())
}
