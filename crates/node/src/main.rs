//! The `quorate` binary: a node with the built-in plugins, and its tools.

fn main() -> std::process::ExitCode {
    quorate_node::main(quorate_node::Registry::built_in())
}
