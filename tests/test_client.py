"""The client in its process: threads, pickle, fork, Ctrl-C, close, and wrong addresses."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import quorate
from quorate import Client, InvalidRequest, LocalCluster, Unavailable


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def db(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.connect(timeout=5.0) as db:
        yield db


def test_eight_threads_share_a_client(db: Client, name: str) -> None:
    bucket = db.bucket(name, codec="json")
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(200):
                bucket.put(f"{thread}-{number}", [thread, number])
                assert bucket.get_value(f"{thread}-{number}") == [thread, number]
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(bucket.keys())) == 1_600


def test_threads_end_without_leaving_connections(db: Client, name: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def work() -> None:
        db.bucket(name).put("k", b"v")

    work()
    before = descriptors()
    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    # The last thread may still be closing its connections.
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= before


def test_a_pickled_client_connects_again(db: Client, name: str) -> None:
    db.bucket(name).put("k", b"v")
    with pickle.loads(pickle.dumps(db)) as again:
        assert again.bucket(name).get_value("k") == b"v"


def _in_child(db: Client, name: str, results: multiprocessing.Queue[bytes | None]) -> None:
    bucket = db.bucket(name)
    bucket.put("from the child", b"c")
    results.put(bucket.get_value("k"))


def test_a_forked_child_can_use_the_client(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put("k", b"v")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bytes | None] = context.Queue()
    child = context.Process(target=_in_child, args=(db, name, results))
    child.start()
    assert results.get(timeout=20) == b"v"
    child.join(20)
    assert child.exitcode == 0
    # The connections of the parent still work.
    for number in range(100):
        bucket.put(f"k{number}", b"v")
    assert bucket.get_value("from the child") == b"c"


def test_request_ids_differ_after_a_fork(db: Client, name: str) -> None:
    """With equal request ids, a write of the child would count as a retry of one of the parent."""
    bucket = db.bucket(name)
    bucket.put("warm", b"")
    child = os.fork()
    if child == 0:
        try:
            for number in range(50):
                bucket.put("k", b"child %d" % number, context=quorate.EMPTY)
        finally:
            os._exit(0)
    for number in range(50):
        bucket.put("k", b"parent %d" % number, context=quorate.EMPTY)
    os.waitpid(child, 0)
    entry = bucket.get("k", r="all")
    assert entry is not None and len(entry.siblings) == 100


def test_ctrl_c_interrupts_a_call(cluster: LocalCluster) -> None:
    # A test run in the background of a shell ignores SIGINT, and child processes inherit that. So
    # the child sets the handler itself.
    code = f"""
import signal
import quorate
signal.signal(signal.SIGINT, signal.default_int_handler)
db = quorate.connect({cluster[0].address!r}, timeout=60, follow=False)
bucket = db.bucket("b")
bucket.put("k", b"v")
print("ready", flush=True)
try:
    while True:
        bucket.put("k", b"v", w=3)
except KeyboardInterrupt:
    print("interrupted", flush=True)
bucket.put("k", b"after", w=1)
print(bucket.get_value("k", r=1), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    cluster.partition([0], [1, 2])
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - began < 10
    assert process.stdout.readline() == "b'after'\n"
    assert process.wait(10) == 0
    cluster.heal()


def test_a_closed_client_refuses_requests(cluster: LocalCluster) -> None:
    db = cluster.connect()
    db.bucket("b").put("k", b"v")
    db.close()
    db.close()
    with pytest.raises(InvalidRequest, match="closed"):
        db.bucket("b").get("k")


def test_addresses_are_checked_and_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}: Connection refused"):
        quorate.connect(f"127.0.0.1:{port}", timeout=0.5)
    for url in ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "http://127.0.0.1:7400", ",", ":7400"]:
        with pytest.raises(InvalidRequest, match="host:port"):
            quorate.connect(url)
    with pytest.raises(InvalidRequest, match="timeout=-1"):
        quorate.connect("127.0.0.1:1", timeout=-1)


def test_the_address_may_come_from_the_environment(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_URL", cluster.url)
    with quorate.connect() as db:
        assert db.ping() > 0
    monkeypatch.delenv("QUORATE_URL")
    with pytest.raises(InvalidRequest, match="QUORATE_URL"):
        quorate.connect()


def test_a_port_with_another_protocol_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable, match="does not speak Quorate's protocol.*right port"):
            quorate.connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.4)
        thread.join()


def test_nodes_end_with_the_process_that_started_them() -> None:
    code = """
import os, quorate, sys
cluster = quorate.LocalCluster(nodes=2)
cluster[1].pause()
print(*[node.pid for node in cluster.nodes], flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_local_cluster_checks_its_arguments() -> None:
    with pytest.raises(InvalidRequest, match="nodes=0"):
        LocalCluster(nodes=0)
    with pytest.raises(quorate.ConfigError, match='"tape": this build has no plugin of that name; use one of lmdb, memory'):
        LocalCluster(nodes=1, storage="tape")
    with pytest.raises(quorate.ConfigError, match="did you mean"):
        LocalCluster(nodes=1, storage="lmdb", config={"storage": {"durabilty": "fsync"}})
    with LocalCluster(nodes=1) as cluster:
        with pytest.raises(InvalidRequest, match="already running"):
            cluster[0].start()
        with pytest.raises(InvalidRequest, match="before wipe"):
            cluster[0].wipe()
        with pytest.raises(InvalidRequest, match="partition"):
            cluster.partition([0], [7])
