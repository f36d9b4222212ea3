"""Command line: tables, JSON, exit codes, and errors that name the remedy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate import LocalCluster

Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3) as cluster:
        yield cluster


def quorate(*arguments: str, url: str = "", stdin: str = "", **environment: str) -> Result:
    own = {key: value for key, value in os.environ.items() if not key.startswith("QUORATE")}
    return subprocess.run(
        [sys.executable, "-m", "quorate", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**own, "QUORATE_URL": url, **environment},
    )


def test_values_are_put_read_scanned_and_deleted(cluster: LocalCluster) -> None:
    put = quorate("put", "carts", "ann", "milk", url=cluster.url)
    assert put.returncode == 0 and "acks in" in put.stdout
    get = quorate("get", "carts", "ann", url=cluster.url)
    assert get.returncode == 0 and "milk" in get.stdout
    assert quorate("get", "carts", "ann", "--raw", url=cluster.url).stdout == "milk"
    assert quorate("put", "carts", "bob", "-", url=cluster.url, stdin="tea\n").returncode == 0
    scan = quorate("scan", "carts", url=cluster.url)
    assert sorted(scan.stdout.splitlines()) == ["ann\tmilk", "bob\ttea\\n"]
    lines = quorate("scan", "carts", "--keys", "-o", "json", url=cluster.url).stdout.splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == ["ann", "bob"]
    assert len(quorate("scan", "carts", "--limit", "1", url=cluster.url).stdout.splitlines()) == 1
    assert quorate("scan", "carts", "--prefix", "b", url=cluster.url).stdout == "bob\ttea\\n\n"
    assert quorate("delete", "carts", "ann", url=cluster.url).returncode == 0
    gone = quorate("get", "carts", "ann", url=cluster.url)
    assert gone.returncode == 1 and "carts/ann is absent" in gone.stderr


def test_siblings_are_shown_and_resolved_with_the_context(cluster: LocalCluster) -> None:
    quorate("put", "carts", "eve", "start", url=cluster.url)
    context = json.loads(quorate("get", "carts", "eve", "-o", "json", url=cluster.url).stdout)["context"]
    quorate("put", "carts", "eve", "one", "--context", context, url=cluster.url)
    second = quorate("put", "carts", "eve", "two", "--context", context, "-o", "json", url=cluster.url)
    assert json.loads(second.stdout)["conflict"] is True
    shown = quorate("get", "carts", "eve", url=cluster.url).stdout
    assert "one" in shown and "two" in shown and "the key has 2 siblings" in shown
    assert quorate("get", "carts", "eve", "--raw", url=cluster.url).returncode == 2
    context = json.loads(quorate("get", "carts", "eve", "-o", "json", url=cluster.url).stdout)["context"]
    quorate("put", "carts", "eve", "both", "--context", context, url=cluster.url)
    assert quorate("get", "carts", "eve", "--raw", url=cluster.url).stdout == "both"
    wrong = quorate("put", "carts", "eve", "x", "--context", "zz", url=cluster.url)
    assert wrong.returncode == 2 and "--context" in wrong.stderr


def test_explain_status_and_ring_describe_the_cluster(cluster: LocalCluster) -> None:
    quorate("put", "carts", "zoe", "tea", "--w", "all", url=cluster.url)
    explain = quorate("explain", "carts", "zoe", url=cluster.url).stdout
    assert "lies in partition" in explain and "the replicas agree" in explain and explain.count(" held ") == 3
    status = quorate("status", url=cluster.url).stdout
    assert status.count("   up   ") == 3 and "1024 partitions" in status
    assert json.loads(quorate("status", "-o", "json", url=cluster.url).stdout)["replicas"] == 3
    ring = quorate("ring", "--key", "zoe", "--bucket", "carts", url=cluster.url).stdout
    assert "33.3 %" in ring and "carts/zoe lies in partition" in ring
    ring_json = json.loads(quorate("ring", "--key", "zoe", "-o", "json", url=cluster.url).stdout)
    assert len(ring_json["key"]["replicas"]) == 3


def test_each_kind_of_error_has_its_exit_code(cluster: LocalCluster) -> None:
    unreachable = quorate("get", "b", "k", "--nodes", "127.0.0.1:1", "--timeout", "0.3")
    assert unreachable.returncode == 3 and "127.0.0.1:1: Connection refused" in unreachable.stderr
    assert quorate("get", "b", "k", "--r", "7", url=cluster.url).returncode == 2
    assert quorate("get", "b", "k", "--r", "most", url=cluster.url).returncode == 2
    assert quorate("get", "no spaces", "k", url=cluster.url).returncode == 2
    assert quorate("get", "b", "k", "--nodes", "nonsense").returncode == 2
    assert quorate("get", "b", "k", "--timeout", "0", url=cluster.url).returncode == 2
    assert quorate("frobnicate").returncode == 2
    help_text = quorate("--help")
    assert help_text.returncode == 0 and "Exit codes" in help_text.stdout
    assert quorate("--version").stdout.startswith("quorate ")


def check(tmp_path: Path, text: str, **environment: str) -> Result:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return quorate("config", "check", str(path), **environment)


def test_a_valid_configuration_is_accepted(tmp_path: Path) -> None:
    valid = check(tmp_path, '[node]\nname = "a"\n[buckets.carts]\nn = 1\nr = "all"\n')
    assert valid.returncode == 0 and "valid. Node a" in valid.stdout
    assert check(tmp_path, "").returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node]\nlissten = 1\n", 'unknown key "lissten": did you mean "listen"?'),
        ("[storge]\n", 'unknown section "storge": did you mean "storage"?'),
        ('[storage]\nengine = "tape"\n', "use one of lmdb, memory"),
        ('[membership]\nplugin = "gosip"\n', "use one of gossip, static"),
        ('[buckets.b]\nresolver = "newest"\n', "[buckets.b] resolver"),
        ("[buckets.b]\nn = 4\n", "[buckets.b] n = 4"),
        ("[buckets.b]\nn = 1\nr = 2\n", "[buckets.b] r=2"),
        ('[buckets.b]\nw = "most"\n', '[buckets.b] w = "most": use "quorum", "all", or a number of at least 1'),
        ("[buckets.b]\nmax_value_bytes = 999999999\n", "use 1 to 16777216"),
        ('[node]\nlisten = "0.0.0.0:7400"\n', "insecure = true"),
        ('[node]\nlisten = "localhost:7400"\n', '[node] listen = "localhost:7400": use ip:port'),
        ('[node]\nname = "no spaces"\n', "A-Z a-z 0-9"),
        ("[node]\nworkers = 0\n", "[node] workers = 0: use 1 to 256"),
        ("[cluster]\npartitions = 1000\n", "power of two"),
        ('[node]\nworkers = "many"\n', '[node] workers = "many": use a whole number'),
        ('[node]\ninsecure = "yes"\n', '[node] insecure = "yes": use true or false'),
        ('[membership]\nplugin = "gossip"\nseeds = "a:1"\n', 'seeds = "a:1": use a list'),
        ("[cluster]\nreplicas = 0\n", "[cluster] replicas = 0: use 1 or more"),
        ("[cluster]\nreplicas = 300\n", "replicas = 300: use a whole number up to 255"),
        ("[cluster]\nreplicas = 3\n", "has 1 members"),
        ("[storage]\ninterval_ms = 0\n", "interval_ms = 0: use 1 to 60000"),
        ("[storage]\nmap_size_mib = 99999999999\n", "map_size_mib = 99999999999: use 1 to 16777216"),
        ("[reaping]\nenabled = false\n", "section [reaping] has a new name: write [tombstone_gc]"),
        ('[membership]\nmembers = [{ name = "x", address = "h:1" }]\n', "does not list this node"),
        ('[storage]\ndurability = "never"\n', 'durability = "never": use `fsync` or `interval`'),
        ("[node\n", "TOML parse error"),
        ("[coordinator]\nmax_in_flight = 0\n", "max_in_flight = 0: use 1"),
    ],
)
def test_errors_in_a_configuration_name_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    wrong = check(tmp_path, text)
    assert wrong.returncode == 2
    assert message in wrong.stderr, wrong.stderr
    assert "node.toml" in wrong.stderr


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    assert "Node b of" in check(tmp_path, '[node]\nname = "a"\n', QUORATE__NODE__NAME="b").stdout
    assert "64 partitions" in check(tmp_path, "", QUORATE__CLUSTER__PARTITIONS="64").stdout
    wrong = check(tmp_path, "", QUORATE__NODE__NAMES="b")
    assert wrong.returncode == 2 and "did you mean" in wrong.stderr
    # The file does not contain the key, so the error names the variable.
    assert "overridden by the environment (QUORATE__NODE__NAMES)" in wrong.stderr


def test_serve_refuses_a_used_address_and_a_missing_file(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\nlisten = "{cluster[0].address}"\ndata = "{tmp_path}/data"\n')
    in_use = quorate("serve", "--config", str(path))
    assert in_use.returncode == 2 and "cannot listen on" in in_use.stderr and "in use" in in_use.stderr
    missing = quorate("serve", "--config", str(tmp_path / "none.toml"))
    assert missing.returncode == 2 and "none.toml" in missing.stderr


def test_a_data_folder_belongs_to_one_node() -> None:
    with LocalCluster(nodes=2, storage="lmdb") as cluster:
        path = cluster[1].folder / "node.toml"
        stolen = path.read_text().replace(str(cluster[1].folder / "data"), str(cluster[0].folder / "data"))
        cluster[1].stop()
        path.write_text(stolen)
        in_use = quorate("serve", "--config", str(path))
        assert in_use.returncode == 2 and "in use by another process" in in_use.stderr
        cluster[0].stop()
        other = quorate("serve", "--config", str(path))
        assert other.returncode == 2 and "belongs to" in other.stderr


def test_a_node_stops_cleanly_on_sigterm(cluster: LocalCluster) -> None:
    with LocalCluster(nodes=1, storage="lmdb") as alone:
        process = alone[0]._process
        assert process is not None
        with alone.connect() as db:
            db.bucket("b").put("k", b"v")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert "stopped" in alone[0].log
