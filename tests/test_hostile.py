"""Malformed and excessive input: a node may close its connection, but serves all other requests."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest

import quorate
from quorate import Client, LocalCluster

MAGIC = b"QUORATE\x01"
# First message of a client: protocol versions 1 to 1, role client.
HELLO = MAGIC + struct.pack("<H", 5) + struct.pack("<HHB", 1, 1, 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def db(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.connect() as db:
        yield db


def send(address: str, *parts: bytes, read: bool = True) -> bytes:
    """Send bytes, and return the reply up to the close of the connection or 1 s of silence."""
    host, port = address.rsplit(":", 1)
    received = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.settimeout(1.0)
        try:
            for part in parts:
                connection.sendall(part)
            while read:
                part = connection.recv(4096)
                if not part:
                    break
                received += part
        except OSError:
            pass
    return received


def assert_unharmed(cluster: LocalCluster, db: Client) -> None:
    assert all(node.running for node in cluster.nodes)
    bucket = db.bucket("b")
    bucket.put("k", b"v", w="all")
    assert bucket.get_value("k", r="all") == b"v"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00" * 64,
        MAGIC + struct.pack("<H", 65_535),
        MAGIC + struct.pack("<H", 3) + b"abc",
        MAGIC + struct.pack("<H", 5) + struct.pack("<HHB", 1, 1, 9),
        MAGIC + struct.pack("<H", 6) + struct.pack("<HHB", 1, 1, 1) + b"x",
    ],
    ids=["http", "tls", "redis", "zeros", "long body", "short body", "unknown role", "half a node"],
)
def test_connections_with_another_protocol_are_refused_and_logged(cluster: LocalCluster, db: Client, garbage: bytes) -> None:
    before = cluster[0].log.count("did not introduce itself as a Quorate client")
    send(cluster[0].address, garbage)
    deadline = time.monotonic() + 5
    while cluster[0].log.count("did not introduce itself as a Quorate client") == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert cluster[0].log.count("did not introduce itself as a Quorate client") == before + 1
    assert_unharmed(cluster, db)


def test_a_newer_protocol_is_refused_with_the_reason(cluster: LocalCluster, db: Client) -> None:
    answer = send(cluster[0].address, MAGIC + struct.pack("<H", 5) + struct.pack("<HHB", 7, 9, 0))
    assert answer.startswith(MAGIC + b"\x01") and b"protocol versions do not overlap" in answer
    assert_unharmed(cluster, db)


def test_a_silent_connection_is_closed(cluster: LocalCluster, db: Client) -> None:
    host, port = cluster[0].address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        assert connection.recv(1) == b""
    assert_unharmed(cluster, db)


def test_malformed_messages_end_their_connection_only(cluster: LocalCluster, db: Client) -> None:
    seeded = random.Random(7)
    # A message that declares four billion segments, one that declares 32 GiB, one that is cut
    # short, and random bytes of several lengths.
    claims = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00\xff\xff\xff\xff", b"\x00\x00\x00\x00\x10\x00\x00\x00abc"]
    noise = [seeded.randbytes(length) for length in [1, 8, 64, 500, 5_000, 50_000]]
    # Random messages in valid frames: one segment of eight words.
    framed = [struct.pack("<II", 0, 8) + seeded.randbytes(64) for _ in range(200)]
    for attack in [*claims, *noise, *framed]:
        send(cluster[0].address, HELLO, attack, read=len(attack) < 8)
    assert_unharmed(cluster, db)


def test_many_idle_connections_do_not_disturb_requests(cluster: LocalCluster, db: Client) -> None:
    host, port = cluster[0].address.rsplit(":", 1)
    connections = [socket.create_connection((host, int(port)), timeout=5) for _ in range(400)]
    try:
        for connection in connections:
            connection.sendall(HELLO)
        assert_unharmed(cluster, db)
    finally:
        for connection in connections:
            connection.close()
    assert_unharmed(cluster, db)


def test_connections_beyond_the_limit_are_closed() -> None:
    with LocalCluster(nodes=1, config={"node": {"max_connections": 8}}) as cluster:
        host, port = cluster[0].address.rsplit(":", 1)
        connections: list[socket.socket] = []
        # The connection of the client that waited for the node to be ready may still be open. Then
        # the node closes the eighth connection too, and the loop tries again.
        deadline = time.monotonic() + 10
        while len(connections) < 8 and time.monotonic() < deadline:
            connection = socket.create_connection((host, int(port)), timeout=5)
            connection.sendall(HELLO)
            try:
                welcomed = connection.recv(9)[:8] == MAGIC
            except ConnectionError:
                welcomed = False
            if welcomed:
                connections.append(connection)
            else:
                connection.close()
        assert len(connections) == 8
        with socket.create_connection((host, int(port)), timeout=5) as one_more:
            try:
                assert one_more.recv(1) == b""
            except ConnectionError:
                pass  # The node closed it with a reset, which is as good.
        for connection in connections:
            connection.close()
        with cluster.connect() as db:
            db.bucket("b").put("k", b"v")


def test_requests_beyond_the_limit_are_refused_not_queued() -> None:
    with LocalCluster(nodes=1, config={"coordinator": {"max_in_flight": 2}}) as cluster:
        items = {f"k{number}": b"v" for number in range(400)}
        with cluster.connect() as db:
            db.bucket("b").put("connect first", b"")
            with pytest.raises(quorate.PartialError) as caught:
                db.bucket("b").put_many(items, timeout=0.05)
            assert any(isinstance(error, quorate.Overloaded) for error in caught.value.errors.values())
            # The client retries refused requests after a pause. With enough time, all are accepted.
            assert len(db.bucket("b").put_many(dict(list(items.items())[:40]), timeout=10)) == 40
