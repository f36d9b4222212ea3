from typing import final

from quorate._errors import QuorateError

__all__ = ["Client", "__version__", "main"]

__version__: str

def main(arguments: list[str]) -> int: ...

@final
class Client:
    def __new__(cls, url: str, timeout: float, follow: bool) -> Client: ...
    def get(self, bucket: str, key: bytes, r: str | None, timeout: float | None) -> tuple[list[bytes], bytes]: ...
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
    def get_many(
        self, bucket: str, keys: list[bytes], r: str | None, timeout: float | None
    ) -> list[tuple[list[bytes], bytes] | QuorateError]: ...
    def put_many(
        self,
        bucket: str,
        items: list[tuple[bytes, bytes | None, bytes, bool]],
        w: str | None,
        sloppy: bool | None,
        timeout: float | None,
    ) -> list[tuple[bytes, int, int, bool] | QuorateError]: ...
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
    def explain(self, bucket: str, key: bytes) -> str: ...
    def status(self) -> str: ...
    def ping(self) -> float: ...
    def fingerprint(self) -> list[tuple[int, int, int, int]]: ...
    def cluster(self, verb: str, name: str = "", address: str = "", zone: str = "", number: int = 0) -> str: ...
    def create_bucket(self, name: str, definition: str, timeout: float) -> None: ...
    def buckets(self) -> str: ...
    def set_faults(self, cut: list[str]) -> None: ...
    def close(self) -> None: ...
