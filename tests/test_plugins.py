"""Extension points: the plugin template, the example node, and the pytest fixtures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from quorate import ConfigError, LocalCluster

ROOT = Path(__file__).parent.parent


def cargo(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["cargo", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_a_copy_of_the_template_builds_a_node_and_passes_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy differs from the template only in its folder and in the paths of its manifest.

    The copy is compiled in the build cache of this checkout.
    """
    folder = tmp_path / "shelf"
    shutil.copytree(ROOT / "plugins/template", folder, ignore=shutil.ignore_patterns("target", "Cargo.lock"))
    shutil.copy(ROOT / "Cargo.lock", folder / "Cargo.lock")
    manifest = (folder / "Cargo.toml").read_text()
    assert manifest.count("../../crates") == 3
    (folder / "Cargo.toml").write_text(manifest.replace("../../crates", str(ROOT / "crates")))
    monkeypatch.setenv("CARGO_TARGET_DIR", str(ROOT / "target/template"))
    output = cargo(folder, "test")
    assert re.search(r"test keeps_the_contract \.\.\. ok", output)
    cargo(folder, "build")
    node = ROOT / "target/template/debug/my-node"
    with LocalCluster(nodes=1, storage="my-engine", command=[str(node)]) as cluster, cluster.connect() as db:
        db.bucket("b").put("k", b"v")
        assert db.status()["storage"].startswith("my-engine")
    with pytest.raises(ConfigError, match="max_record"):
        LocalCluster(nodes=1, storage="my-engine", config={"storage": {"max_record": 1}}, command=[str(node)])


def test_the_example_engine_keeps_what_it_acked_over_a_kill() -> None:
    """All nodes of a cluster of the example node are killed at once and started again."""
    cargo(ROOT, "build", "--locked", "-p", "quorate-example-fjall")
    node = ROOT / "target/debug/quorate-with-fjall"
    with LocalCluster(nodes=3, storage="fjall", command=[str(node)]) as cluster:
        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b")
            written = {f"k{at}": os.urandom(50) for at in range(500)}
            bucket.put_many(dict(written))
            for one in cluster.nodes:
                one.kill()
            for one in cluster.nodes:
                one.start()
            cluster.wait_connected()
            read = bucket.get_many(list(written))
            assert {key: entry.value for key, entry in read.items()} == written


def test_a_command_that_is_not_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="use a list"):
        LocalCluster(nodes=1, command="quorate")


def test_the_fixtures_work_as_documented(pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs/testing.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    pytester.makepyfile(test_page=example)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_the_fixtures_settings_are_checked(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nquorate_nodes = many")
    pytester.makepyfile(test_any="def test_any(quorate_bucket): pass")
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(["*quorate_nodes = many: use 1 to 64*"])


def test_the_fixtures_take_nodes_and_storage_from_the_settings(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nquorate_nodes = 1\nquorate_storage = lmdb")
    pytester.makepyfile(
        test_any="""
        def test_any(quorate_cluster, quorate_bucket):
            assert len(quorate_cluster) == 1
            with quorate_cluster.connect() as db:
                assert db.status()["storage"].startswith("lmdb")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
