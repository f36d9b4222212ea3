"""pytest fixtures for code that uses Quorate. They run real nodes.

pytest finds the fixtures once the package is installed. ``quorate_cluster`` is a `LocalCluster` for
the whole test run; the first test that uses it starts it. ``quorate_bucket`` is a bucket that no
other test uses.

The configuration of pytest has two settings: ``quorate_nodes`` (1 to 64, default 3) and
``quorate_storage`` (default ``memory``). A test sets the options of its bucket with
``@pytest.mark.quorate_bucket(codec="json")``.
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
    """Register the settings ``quorate_nodes`` and ``quorate_storage``."""
    parser.addini("quorate_nodes", "number of nodes of the fixture quorate_cluster, 1 to 64", default="3")
    parser.addini("quorate_storage", "storage plugin of the nodes of the fixture quorate_cluster", default="memory")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker ``quorate_bucket``."""
    config.addinivalue_line("markers", "quorate_bucket(**options): options of the fixture's bucket, as for Client.bucket")


@pytest.fixture(scope="session")
def quorate_cluster(pytestconfig: pytest.Config) -> Iterator[LocalCluster]:
    """Yield a cluster of real nodes on this machine, one for the whole test run."""
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
    """Return a bucket that no other test uses.

    First restarts, resumes and reconnects the nodes that an earlier test killed, paused or cut off.
    """
    for node in quorate_cluster.nodes:
        node.resume()
        if not node.running:
            node.start()
    quorate_cluster.heal()
    marker = request.node.get_closest_marker("quorate_bucket")
    options: dict[str, Any] = dict(marker.kwargs) if marker else {}
    return _quorate_client.bucket(f"test-{secrets.token_hex(8)}", **options)
