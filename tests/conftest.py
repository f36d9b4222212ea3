"""Fixtures: a cluster of real nodes for each module and storage engine, and names of buckets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from quorate import Client, LocalCluster

pytest_plugins = ["pytester"]

_numbers = itertools.count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses ``storage`` with both storage engines."""
    if "storage" in metafunc.fixturenames:
        metafunc.parametrize("storage", ["memory", "lmdb"], scope="module")


@pytest.fixture(scope="module")
def cluster(storage: str) -> Iterator[LocalCluster]:
    """Three healthy nodes, shared by a module. A test that harms nodes starts its own cluster."""
    config = {
        "buckets": {
            "lww": {"resolver": "lww"},
            "two": {"n": 2},
            "narrow": {"max_siblings": 3, "max_value_bytes": 1000},
            "background": {"read_repair": "background"},
            "unrepaired": {"read_repair": "off"},
        }
    }
    with LocalCluster(nodes=3, storage=storage, config=config) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def db(cluster: LocalCluster) -> Iterator[Client]:
    """Client of the shared cluster."""
    with cluster.connect(timeout=5.0) as db:
        yield db


@pytest.fixture
def name() -> str:
    """Name of a bucket that no other test uses."""
    return f"b{next(_numbers)}"
