//! A node with this engine, besides the engines that come with Quorate.

fn main() -> std::process::ExitCode {
    let mut registry = quorate_server::Registry::built_in();
    registry.storage(my_engine::NAME, my_engine::open);
    quorate_server::main(registry)
}
