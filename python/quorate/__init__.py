"""Quorate: a leaderless, replicated key-value store in the line of Amazon's Dynamo.

`connect` returns a `Client` of a cluster. `Client.bucket` returns a `Bucket`, which reads and
writes values under keys. `LocalCluster` starts real nodes on this machine, for tests and trials.
All exceptions derive from `QuorateError`. Durations are seconds or `datetime.timedelta`.

>>> import quorate
>>> with quorate.LocalCluster(nodes=3) as cluster:  # real node processes on this machine
...     db = cluster.connect()  # another cluster: quorate.connect("host:port,host:port")
...     carts = db.bucket("carts", codec="json")
...     put = carts.put("ann", {"milk": 1})
...     carts.get("ann").value
{'milk': 1}
"""

from quorate._bucket import Bucket, ConflictWarning, Entry, Put, Scan
from quorate._client import Client, connect
from quorate._cluster import LocalCluster, Node
from quorate._codec import Codec
from quorate._context import EMPTY, Context
from quorate._errors import (
    CodecError,
    ConfigError,
    ConflictError,
    DeadlineExceeded,
    Indeterminate,
    InvalidRequest,
    Overloaded,
    PartialError,
    QuorateError,
    StorageFailed,
    TooManySiblings,
    Unavailable,
)
from quorate._native import __version__

__all__ = [
    "EMPTY",
    "Bucket",
    "Client",
    "Codec",
    "CodecError",
    "ConfigError",
    "ConflictError",
    "ConflictWarning",
    "Context",
    "DeadlineExceeded",
    "Entry",
    "Indeterminate",
    "InvalidRequest",
    "LocalCluster",
    "Node",
    "Overloaded",
    "PartialError",
    "Put",
    "QuorateError",
    "Scan",
    "StorageFailed",
    "TooManySiblings",
    "Unavailable",
    "__version__",
    "connect",
]
