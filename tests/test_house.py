"""The house's own rules, held by tests: who may import whom, what the documents show, what nothing may contain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import LocalCluster

ROOT = Path(__file__).parent.parent
# For strangers to start from: a plugin and a node with it, each in one crate.
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
    # The whole node but its shell, and no storage: it brings its own.
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


def test_every_dependency_is_explained() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    for dependency in workspace:
        if not dependency.startswith("quorate-"):
            assert f"`{dependency}`" in architecture, f"ARCHITECTURE.md does not say why {dependency}"


def test_documents_name_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for path in re.findall(r"`((?:crates|plugins|python|schema|tests|docs|demo)/[\w./-]+)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readme_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks("README.md")
    assert blocks
    with LocalCluster(nodes=3) as cluster:
        monkeypatch.setenv("QUORATE_URL", cluster.url)
        for block in blocks:
            # The address in the document is where a reader's cluster listens; ours is elsewhere.
            exec(compile(block.replace("127.0.0.1:7400", cluster[0].address), "README.md", "exec"), {})


def test_the_package_docstring_runs() -> None:
    import doctest

    assert doctest.testmod(quorate).failed == 0


def test_the_readme_commands_run(tmp_path: Path) -> None:
    """The shell session of the README, against three nodes made of its own configuration."""
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
    table = (ROOT / "docs/errors.md").read_text()
    rust = (ROOT / "crates/core/src/error.rs").read_text()
    schema = (ROOT / "schema/client.capnp").read_text()
    names = re.findall(r"RequestError::(\w+) \{ \.\. \} => \"\1\"", rust)
    assert len(names) == 7
    for name in names:
        assert f"`{name}`" in table
        assert name[0].lower() + name[1:] in schema
    for python in [
        quorate.Unavailable,
        quorate.Indeterminate,
        quorate.Overloaded,
        quorate.DeadlineExceeded,
        quorate.TooManySiblings,
        quorate.StorageFailed,
        quorate.InvalidRequest,
    ]:
        assert issubclass(python, quorate.QuorateError) and f"`{python.__name__}`" in table


def test_json_of_status_is_plain() -> None:
    with LocalCluster(nodes=1) as cluster, cluster.connect() as db:
        json.dumps(db.status())
