//! Generates Rust code from `schema/` with the Cap'n Proto compiler (Debian: capnproto), into the
//! folder where the code is committed. Building Quorate therefore needs no such compiler. `make
//! schema` runs this program. A test fails if the committed code is stale.

use std::path::{Path, PathBuf};

fn schema() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn committed() -> PathBuf {
    schema().join("../crates/rpc/src/generated")
}

fn generate(out: &Path) {
    capnpc::CompilerCommand::new()
        .src_prefix(schema())
        .import_path(schema())
        .no_standard_import()
        .default_parent_module(vec!["generated".into()])
        .file(schema().join("client.capnp"))
        .file(schema().join("peer.capnp"))
        .output_path(out)
        .run()
        .expect("the Cap'n Proto compiler (Debian: capnproto) compiles schema/");
}

fn main() {
    generate(&committed());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed code is the code that the generator makes of the schema.
    #[test]
    fn committed_code_is_current() {
        if std::process::Command::new("capnp").arg("--version").output().is_err() {
            println!("skipped: the Cap'n Proto compiler is not installed (Debian: capnproto)");
            return;
        }
        let fresh = tempfile::tempdir().expect("a temporary folder");
        generate(fresh.path());
        for name in ["client_capnp.rs", "peer_capnp.rs"] {
            let made = std::fs::read_to_string(fresh.path().join(name)).expect("generated");
            let kept = std::fs::read_to_string(committed().join(name)).expect("committed");
            // Comments are ignored, because the compiler writes its own version into one.
            let body = |text: &str| {
                text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n")
            };
            assert!(body(&made) == body(&kept), "{name} is stale: run `make schema` and commit the result");
        }
    }
}
