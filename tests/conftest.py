"""Clusters for the tests: real processes, one cluster a module and storage, buckets fresh for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from quorate import Client, LocalCluster

pytest_plugins = ["pytester"]

_numbers = itertools.count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a storage with each."""
    if "storage" in metafunc.fixturenames:
        metafunc.parametrize("storage", ["memory", "lmdb"], scope="module")


@pytest.fixture(scope="module")
def cluster(storage: str) -> Iterator[LocalCluster]:
    """Three healthy nodes, shared by a module: tests that harm nodes make their own."""
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
    """A client of the shared cluster."""
    with cluster.connect(timeout=5.0) as db:
        yield db


@pytest.fixture
def name() -> str:
    """A bucket's name that no other test uses."""
    return f"b{next(_numbers)}"
