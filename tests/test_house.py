"""Rules of this repository: allowed imports, documents that match the code, names of errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import rust_imports

import quorate
from quorate import LocalCluster, _errors

ROOT = Path(__file__).parent.parent
# Examples to copy: each crate is a plugin and a node with this plugin.
EXAMPLES = {"example-fjall": "quorate-example-fjall", "template": "my-engine"}
PLUGINS = {
    path.name: f"quorate-{path.name}" for path in (ROOT / "plugins").iterdir() if path.is_dir() and path.name not in EXAMPLES
}

ALLOWED = {
    "quorate-core": set[str](),
    "quorate-node": {"quorate-core"},
    "quorate-rpc": {"quorate-core"},
    "quorate-client": {"quorate-core", "quorate-rpc"},
    "quorate-server": {"quorate-core", "quorate-node", "quorate-rpc", "quorate-client", *PLUGINS.values()},
    "quorate-python": {"quorate-client", "quorate-server"},
    **{plugin: {"quorate-core"} for plugin in PLUGINS.values()},
    **{example: {"quorate-core", "quorate-server"} for example in EXAMPLES.values()},
    # The simulation uses the node without its server, and has its own storage engine.
    "quorate-sim": {"quorate-core", "quorate-node", "quorate-rpc"}
    | {plugin for plugin in PLUGINS.values() if "storage" not in plugin},
}


def manifests() -> dict[str, dict[str, Any]]:
    found = {}
    for folder in [ROOT / "crates", ROOT / "plugins", ROOT / "python", ROOT / "tests"]:
        for path in [*folder.glob("*/Cargo.toml"), *folder.glob("Cargo.toml")]:
            manifest = tomllib.loads(path.read_text())
            found[manifest["package"]["name"]] = manifest
    return found


def test_crates_import_only_what_they_may() -> None:
    seen = manifests()
    assert set(seen) == set(ALLOWED)
    for name, manifest in seen.items():
        ours = {dependency for dependency in manifest["dependencies"] if dependency.startswith("quorate-")}
        assert ours <= ALLOWED[name], f"{name} may not import {ours - ALLOWED[name]}"


def test_core_stays_pure_and_only_rpc_names_capnp() -> None:
    for name, manifest in manifests().items():
        dependencies = set(manifest["dependencies"])
        if name == "quorate-core":
            assert not dependencies & {"tokio", "async-trait", "getrandom", "futures", "libc"}
        assert name == "quorate-rpc" or not dependencies & {"capnp", "capnp-rpc"}
        assert name == "quorate-storage-lmdb" or not dependencies & {"lmdb-rkv", "lmdb-rkv-sys"}
    for path in (ROOT / "crates/core/src").rglob("*.rs"):
        if "conformance" in path.parts:
            continue
        text = path.read_text()
        for impure in ["std::net", "std::fs", "std::thread", "SystemTime", "Instant"]:
            assert impure not in text, f"{path} uses {impure}"


CRATES = sorted(path.parent for path in ROOT.glob("*/*/Cargo.toml")) + [ROOT / "python", ROOT / "schema" / "generator"]
# Folders and files of crates/node, from the lowest to the highest. Each imports only lower ones.
STAIRS = [
    "gather",
    "state",
    "replica",
    "node",
    "membership",
    "repair",
    "layout_change",
    "coordinator",
    "admin",
    "service",
    "lib",
]


@pytest.mark.parametrize("crate", sorted({path for path in CRATES if (path / "src").is_dir()}), ids=lambda path: path.name)
def test_folders_import_each_other_in_no_circle(crate: Path) -> None:
    assert rust_imports.folder_circles(rust_imports.imports(crate / "src")) == []
    assert rust_imports.foreign_methods(crate / "src") == []


def test_files_of_core_import_each_other_in_no_circle() -> None:
    assert rust_imports.circles(rust_imports.imports(ROOT / "crates/core/src")) == []


def test_folders_of_the_node_are_stairs() -> None:
    between = rust_imports.folder_imports(rust_imports.imports(ROOT / "crates/node/src"))
    assert set(between) == set(STAIRS), "add a new folder to STAIRS and to the table in crates/node/src/lib.rs"
    for folder, imported in between.items():
        above = {other for other in imported if STAIRS.index(other) > STAIRS.index(folder)}
        assert not above, f"crates/node/src/{folder} imports {above}, which are above it"
    all_folders = {path.name for path in (ROOT / "crates/node/src").iterdir() if path.is_dir()}
    imports_most = {folder for folder, imported in between.items() if len(imported & all_folders) > len(all_folders) - 2}
    assert imports_most <= {"service", "lib"}


def test_the_import_reader_finds_a_circle(tmp_path: Path) -> None:
    """The import reader reads nested uses and paths in code. It skips comments, strings and unit tests."""
    (tmp_path / "a").mkdir()
    (tmp_path / "lib.rs").write_text("mod a; mod b; mod c;\nfn f() { c::run() }")
    (tmp_path / "a/mod.rs").write_text("pub mod inner; pub mod other;")
    (tmp_path / "a/inner.rs").write_text("use crate::{b::{self, Thing}, c};\nstruct Other;")
    (tmp_path / "a/other.rs").write_text("use super::inner::Other;")
    (tmp_path / "b.rs").write_text(
        "struct Thing;\n// one \" quote\nfn f() { '\"'; r#\"a\"b\"#; crate::a::inner::g() }\n"
        "impl<T: Into<u8>> Other where T: X { }"
    )
    (tmp_path / "c.rs").write_text(
        '// crate::a\nconst TEXT: &str = "crate::a";\n#[cfg(test)]\nmod tests {\n use crate::a;\n}\nuse crate::run;'
    )
    graph = rust_imports.imports(tmp_path)
    assert graph["a/inner.rs"] == {"b.rs", "c.rs"}
    assert graph["b.rs"] == {"a/inner.rs"}
    assert graph["c.rs"] == {"lib.rs"} and graph["lib.rs"] == {"c.rs"}
    assert rust_imports.folder_circles(graph) == [["a", "b"], ["c", "lib"]]
    assert rust_imports.foreign_methods(tmp_path) == ["b.rs: impl Other"]


def test_the_import_reader_finds_circles_inside_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a/x").mkdir(parents=True)
    (tmp_path / "lib.rs").write_text("mod a;")
    (tmp_path / "a/mod.rs").write_text("mod x; mod y;")
    (tmp_path / "a/x/mod.rs").write_text("use crate::a::y::Y;\npub struct X;")
    (tmp_path / "a/y.rs").write_text("use super::x::X;\npub struct Y;")
    assert rust_imports.folder_circles(rust_imports.imports(tmp_path)) == [["a/x", "a/y"]]


def test_code_has_no_forbidden_shapes() -> None:
    """No glob imports but preludes and unit tests, and no `Option<Option<_>>`: CONTRIBUTING.md, rules."""
    for crate in CRATES:
        for path in (crate / "src").rglob("*.rs"):
            if "generated" in path.parts or path.name == "tests.rs":
                continue
            code = rust_imports.code_of(path.read_text())
            assert "Option<Option<" not in code.replace(" ", ""), path
            globs = [line for line in re.findall(r"\buse ([\w:]+)::\*;", code) if not line.endswith("prelude")]
            assert not globs, f"{path}: {globs}"


def test_every_dependency_is_explained() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    for dependency in workspace:
        if not dependency.startswith("quorate-"):
            assert f"`{dependency}`" in architecture, f"ARCHITECTURE.md does not explain the dependency {dependency}"


DOCUMENTS = [
    *(ROOT / name for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "schema").rglob("*.md"),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_that_exist(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(r"`((?:crates|plugins|python|schema|tests|docs|demo)/[\w./-]+\.?\w+)", text):
        assert (ROOT / path).exists(), f"{document.name} names {path}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text):
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_documents_name_identifiers_that_exist() -> None:
    """Types and functions that the pages for developers name exist in the code."""
    command = ["git", "ls-files", "*.rs", "*.py", "*.capnp"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code = "\n".join((ROOT / path).read_text() for path in tracked.stdout.split() if (ROOT / path).exists())
    words = set(re.findall(r"\w+", code))
    for name in ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/glossary.md", "docs/plugins.md"]:
        for identifier in re.findall(r"`((?:\w+::)*[A-Za-z_]\w+)(?:\(\))?`", (ROOT / name).read_text()):
            is_code = "::" in identifier or "_" in identifier or re.match(r"[A-Z]\w*[a-z]", identifier)
            missing = [part for part in identifier.split("::") if part not in words]
            assert not is_code or not missing, f"{name} names {identifier}: {missing}"


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readme_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks("README.md")
    assert blocks
    with LocalCluster(nodes=3) as cluster:
        monkeypatch.setenv("QUORATE_URL", cluster.url)
        for block in blocks:
            # Replace the address in the document by the address of this cluster.
            exec(compile(block.replace("127.0.0.1:7400", cluster[0].address), "README.md", "exec"), {})


def test_the_package_docstring_runs() -> None:
    import doctest

    assert doctest.testmod(quorate).failed == 0


def test_the_readme_commands_run(tmp_path: Path) -> None:
    """Run the shell session of the README against a node with the configuration of the README."""
    readme = (ROOT / "README.md").read_text()
    [configuration] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    with LocalCluster(nodes=1) as ports:
        address = ports[0].address
    path = tmp_path / "node.toml"
    path.write_text(configuration.replace("127.0.0.1:7400", address).replace("./data", str(tmp_path / "data")))
    quorate_command = [sys.executable, "-m", "quorate"]
    checked = subprocess.run([*quorate_command, "config", "check", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    node = subprocess.Popen([*quorate_command, "serve", "--config", str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout is not None and node.stdout.readline().startswith("quorate ready")
        [session] = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
        commands = [line[2:] for line in session.splitlines() if line.startswith("$ quorate ")]
        assert commands
        for command in commands:
            words = command.split()[1:]
            if words[0] == "serve":
                continue
            done = subprocess.run([*quorate_command, *words, "--nodes", address], capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr)
    finally:
        node.terminate()
        assert node.wait(10) == 0


def test_errors_have_the_same_names_everywhere() -> None:
    """Rust, wire, exit codes, Python exceptions and docs/errors.md have the same list of names."""
    rust = (ROOT / "crates/core/src/error.rs").read_text()
    [variants] = re.findall(r"pub enum RequestError \{(.*?)\n\}", rust, re.DOTALL)
    names = re.findall(r"^    (\w+) \{$", variants, re.MULTILINE)
    assert len(names) == 7
    assert re.findall(r'RequestError::(\w+) \{ \.\. \} => "(\w+)"', rust) == [(name, name) for name in names]
    schema = (ROOT / "schema/client.capnp").read_text().split("struct Failure")[1]
    [kinds] = re.findall(r"enum Kind \{(.*?)\}", schema, re.DOTALL)
    assert sorted(re.findall(r"(\w+) @\d+;", kinds)) == sorted(name[0].lower() + name[1:] for name in names)
    exits = re.findall(r"RequestError::(\w+) \{ \.\. \}\)+ => (\d)", (ROOT / "crates/server/src/cli/exit.rs").read_text())
    assert {name for name, _ in exits} == set(names)
    assert set(_errors._BY_NAME) == set(names)
    for name, exception in _errors._BY_NAME.items():
        assert exception.__name__ == name and getattr(quorate, name) is exception
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \| `(\w+)`[^|]*\| (\d) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted((name, code) for name, _, code in rows) == sorted(exits)
    assert all(name == exception for name, exception, _ in rows)


STEPS = {"put": 12, "get": 9}


@pytest.mark.parametrize("verb", STEPS)
def test_the_steps_of_a_request_exist(verb: str) -> None:
    """The functions that ARCHITECTURE.md lists for a request exist, in few files of crates/node."""
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    [section] = re.findall(rf"^## A {verb}, step by step$(.*?)^## ", architecture, re.DOTALL | re.MULTILINE)
    steps = re.findall(r"^(\d+)\. `([\w/.-]+\.rs)::([\w:]+)`", section, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, len(steps) + 1)) and len(steps) > 5
    assert len(steps) == len(re.findall(r"^\d+\. ", section, re.MULTILINE))
    for _, path, function in steps:
        code = (ROOT / path).read_text()
        *types, name = function.split("::")
        assert re.search(rf"\bfn {name}\b", code), f"{path} has no function {name}"
        assert all(re.search(rf"\b(?:impl|trait)\b[^{{]*\b{kind}\b", code) for kind in types), f"{path}: {function}"
    files = {path for _, path, _ in steps if path.startswith("crates/node/")}
    assert len(files) <= STEPS[verb], files


def test_json_of_status_is_plain() -> None:
    with LocalCluster(nodes=1) as cluster, cluster.connect() as db:
        json.dumps(db.status())
