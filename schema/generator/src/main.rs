//! Writes the code that the Cap'n Proto compiler (Debian: capnproto) makes of `schema/` to where it is committed, so
//! that building Quorate needs no such compiler. `make schema` calls it; a test fails when what is committed is stale.

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

    /// The code that is committed is what the schema makes.
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
            // The compiler writes its own version into a comment.
            let body = |text: &str| {
                text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n")
            };
            assert!(body(&made) == body(&kept), "{name} is stale: run `make schema` and commit the result");
        }
    }
}
