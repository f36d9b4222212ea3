"""Load generator: its output, its counts, and the checks that make its figures reliable."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quorate import LocalCluster

FAST = ["--seconds", "0.5", "--warm-up", "0.1", "--keys", "500", "--in-flight", "16"]


@pytest.fixture(scope="module")
def small() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3) as cluster:
        yield cluster


def bench(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quorate", "bench", "--nodes", cluster.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def report(cluster: LocalCluster, *arguments: str) -> dict[str, Any]:
    done = bench(cluster, "-o", "json", *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("workload", ["put", "get", "a", "b", "c"])
def test_every_workload_runs_and_reports_the_fields(small: LocalCluster, workload: str) -> None:
    verify = [] if workload == "put" else ["--verify"]
    got = report(small, "--workload", workload, *verify, "--bucket", f"verified-{workload}", *FAST)
    assert got["errors"] == {} and got["wrong"] == []
    assert got["ops_per_s"] > 0 and got["operations"] > 0
    assert 0 < got["p50_us"] <= got["p99_us"] <= got["p999_us"]
    assert ("get" in got) == (workload in "ab"), "mixed workloads report reads and writes separately"
    # `--connections 4` is the default. Two clients have a connection to each of three nodes: six.
    assert got["connections"] == 6 and got["in_flight"] == 16


def test_several_threads_share_the_load(small: LocalCluster) -> None:
    got = report(small, "--workload", "a", "--threads", "2", "--verify", "--bucket", "threads", *FAST)
    assert got["errors"] == {}
    assert len(got["operations_by_thread"]) == 2 and all(got["operations_by_thread"])
    assert sum(got["operations_by_thread"]) == got["operations"]


def test_threads_share_one_clock_in_an_open_loop(small: LocalCluster) -> None:
    got = report(small, "--threads", "2", "--rate", "400", *FAST)
    assert got["operations"] + got["late"] == 200 and got["errors"] == {}
    assert got["p50_us"] > 0


def test_a_rate_above_capacity_is_not_reported_as_reached(small: LocalCluster) -> None:
    got = report(small, "--rate", "2000000", "--seconds", "0.2", "--warm-up", "0", "--keys", "500", "--in-flight", "16")
    assert got["ops_per_s"] < 1_000_000 and got["late"] > 0


def test_verify_reports_absent_and_wrong_values(small: LocalCluster) -> None:
    done = bench(small, "--workload", "get", "--verify", "--skip-load", "--bucket", "never-written", *FAST)
    assert done.returncode == 9
    assert "is absent" in done.stderr

    report(small, "--workload", "get", "--bucket", "altered", *FAST)
    with small.connect() as db:
        db.bucket("altered").put_many({f"key{at:010}": b"x" * 100 for at in range(500)})
    done = bench(small, "--workload", "get", "--verify", "--skip-load", "--bucket", "altered", "-o", "json", *FAST)
    assert done.returncode == 9
    assert "bytes that no run of this command wrote" in done.stderr
    errors = json.loads(done.stdout)["errors"]
    assert set(errors) == {"Wrong"} and errors["Wrong"] > 0


def test_errors_are_counted_by_type() -> None:
    with LocalCluster(nodes=3) as cluster:
        cluster[2].kill()
        got = report(cluster, "--w", "3", "--timeout", "0.3", *FAST)
        assert got["errors"].keys() <= {"Unavailable", "Indeterminate"} and got["errors"]
        assert got["operations"] == 0


def test_an_open_loop_charges_a_stall_to_every_request_due_in_it() -> None:
    """A node is frozen for 0.8 of 3 s.

    A closed loop sends few requests meanwhile. An open loop counts every request that was due.
    """
    arguments = ["--seconds", "3", "--warm-up", "0", "--keys", "100", "--in-flight", "4"]
    with LocalCluster(nodes=1) as cluster:

        def stall() -> None:
            time.sleep(1.2)
            cluster[0].pause()
            time.sleep(0.8)
            cluster[0].resume()

        slow = {}
        for name, rate in (("open", ["--rate", "200"]), ("closed", [])):
            thread = threading.Thread(target=stall)
            thread.start()
            slow[name] = report(cluster, *arguments, *rate)
            thread.join()
        assert slow["open"]["p90_us"] > 100_000, "a quarter of the requests were due during the stall"
        assert slow["closed"]["p99_us"] < slow["open"]["p90_us"], "only four of thousands of requests waited"
        assert slow["open"]["operations"] + slow["open"]["late"] == 600 and slow["open"]["errors"] == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keys", "0"], "--keys 0: use 1 to"),
        (["--in-flight", "0"], "--in-flight 0: use 1 to"),
        (["--connections", "0"], "--connections 0: use 1 to"),
        (["--seconds", "0"], "--seconds 0: use 0.1 to"),
        (["--rate", "-5"], "--rate -5"),
        (["--value-bytes", "99999999"], "--value-bytes 99999999: use 0 to 16777216"),
        (["--value-bytes", "8", "--verify", "--workload", "a"], "at least 16"),
        (["--workload", "put", "--verify"], "it reads nothing"),
        (["--keys", "10", "--in-flight", "64", "--verify", "--workload", "a"], "use more keys"),
        (["--workload", "d"], "possible values"),
        (["--bucket", "no spaces"], "no spaces"),
        (["--r", "0"], "a number of at least 1"),
    ],
)
def test_invalid_options_are_named_in_the_error(small: LocalCluster, arguments: list[str], said: str) -> None:
    done = bench(small, f"{arguments[0]}={arguments[1]}", *arguments[2:])
    assert done.returncode == 2
    assert said in done.stderr


def test_the_table_shows_rates_and_latencies(small: LocalCluster) -> None:
    done = bench(small, "--workload", "a", *FAST)
    assert done.returncode == 0
    for part in ("operations a second", "p99.9", "get", "put", "no errors"):
        assert part in done.stdout


def test_an_unreachable_address_is_named() -> None:
    command = [sys.executable, "-m", "quorate", "bench", "--nodes", "127.0.0.1:1", "--timeout", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "127.0.0.1:1" in done.stderr
