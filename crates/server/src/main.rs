//! The `quorate` binary: a node with the built-in plugins, and its tools.

/// A node makes and drops many small things a request: measured in docs/benchmarks.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quorate_server::main(quorate_server::Registry::built_in())
}
