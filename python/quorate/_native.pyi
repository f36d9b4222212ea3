# Types of the native part (python/src). Timeouts and durations are in seconds. A quorum size is
# text: a number from 1, "quorum" or "all"; None means the default of the bucket.

from typing import final

from quorate._errors import QuorateError

__all__ = ["Client", "__version__", "main"]

__version__: str

def main(arguments: list[str]) -> int: ...

@final
class Client:
    def __new__(cls, url: str, timeout: float, follow: bool) -> Client: ...
    # Values of the siblings in stamp order, and the context.
    def get(self, bucket: str, key: bytes, r: str | None, timeout: float | None) -> tuple[list[bytes], bytes]: ...
    # Context, acknowledgements, acknowledgements by hint, and True if there is an unseen sibling.
    # A `value` of None deletes. `exact`: replace exactly the versions in `context`.
    def put(
        self,
        bucket: str,
        key: bytes,
        value: bytes | None,
        context: bytes,
        exact: bool,
        w: str | None,
        sloppy: bool | None,
        timeout: float | None,
    ) -> tuple[bytes, int, int, bool]: ...
    # One result, or the exception, for each key, in order.
    def get_many(
        self, bucket: str, keys: list[bytes], r: str | None, timeout: float | None
    ) -> list[tuple[list[bytes], bytes] | QuorateError]: ...
    # `items`: key, value, context and `exact`, as for `put`.
    def put_many(
        self,
        bucket: str,
        items: list[tuple[bytes, bytes | None, bytes, bool]],
        w: str | None,
        sloppy: bool | None,
        timeout: float | None,
    ) -> list[tuple[bytes, int, int, bool] | QuorateError]: ...
    # Entries of one page (key, siblings, context, cursor after the entry), and the cursor of the
    # next page, which is empty after the last page.
    def scan(
        self,
        bucket: str,
        prefix: bytes,
        cursor: bytes,
        limit: int,
        keys_only: bool,
        r: str | None,
        timeout: float | None,
    ) -> tuple[list[tuple[bytes, list[bytes], bytes, bytes]], bytes]: ...
    # JSON, as of `status`, `cluster` and `buckets`.
    def explain(self, bucket: str, key: bytes) -> str: ...
    def status(self) -> str: ...
    def ping(self) -> float: ...
    # Partition, n, number of records, and their digest, for each partition that is not empty.
    def fingerprint(self) -> list[tuple[int, int, int, int]]: ...
    def cluster(self, verb: str, name: str = "", address: str = "", zone: str = "", number: int = 0) -> str: ...
    def create_bucket(self, name: str, definition: str, timeout: float) -> None: ...
    def buckets(self) -> str: ...
    # Names of the nodes to cut off; ">name" drops only the messages to that node.
    def set_faults(self, cut: list[str]) -> None: ...
    def close(self) -> None: ...
