//! A node with fjall, besides the built-in engines: `[storage] engine = "fjall"`.

fn main() -> std::process::ExitCode {
    let mut registry = quorate_server::Registry::built_in();
    registry.storage(quorate_example_fjall::NAME, quorate_example_fjall::open);
    quorate_server::main(registry)
}
