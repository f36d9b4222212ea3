"""Fixtures for testing code that uses Quorate, against real nodes. pytest finds them once the package is installed.

``quorate_cluster`` is a `LocalCluster` for the whole run, started when a test first asks for it. ``quorate_bucket`` is a
bucket that no other test uses. The settings ``quorate_nodes`` (3) and ``quorate_storage`` (memory) go into pytest's
configuration; a test chooses options of its bucket with ``@pytest.mark.quorate_bucket(codec="json")``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from quorate._bucket import Bucket
from quorate._client import Client
from quorate._cluster import LocalCluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings."""
    parser.addini("quorate_nodes", "how many nodes quorate_cluster has", default="3")
    parser.addini("quorate_storage", "the storage plugin of quorate_cluster's nodes", default="memory")


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker."""
    config.addinivalue_line("markers", "quorate_bucket(**options): options of the fixture's bucket, as of Client.bucket")


@pytest.fixture(scope="session")
def quorate_cluster(pytestconfig: pytest.Config) -> Iterator[LocalCluster]:
    """Real nodes on this machine, for the whole run."""
    nodes = str(pytestconfig.getini("quorate_nodes"))
    if not nodes.isdecimal() or not 1 <= int(nodes) <= 64:
        raise pytest.UsageError(f"quorate_nodes = {nodes}: use 1 to 64")
    storage = str(pytestconfig.getini("quorate_storage"))
    with LocalCluster(nodes=int(nodes), storage=storage) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _quorate_client(quorate_cluster: LocalCluster) -> Iterator[Client]:
    with quorate_cluster.connect(timeout=5.0) as client:
        yield client


@pytest.fixture
def quorate_bucket(
    request: pytest.FixtureRequest, quorate_cluster: LocalCluster, _quorate_client: Client
) -> Bucket[Any]:
    """Give the test a fresh bucket; nodes that an earlier test killed, paused or cut off are back."""
    for node in quorate_cluster.nodes:
        node.resume()
        if not node.running:
            node.start()
    quorate_cluster.heal()
    marker = request.node.get_closest_marker("quorate_bucket")
    options: dict[str, Any] = dict(marker.kwargs) if marker else {}
    return _quorate_client.bucket(f"test-{secrets.token_hex(8)}", **options)
