"""A cluster of real node processes on this machine, for tests and for trying things out."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from quorate._client import Client, Seconds, connect, seconds
from quorate._errors import ConfigError, InvalidRequest, QuorateError
from quorate._toml import dumps

START_SECONDS = 20.0
STOP_SECONDS = 10.0
SETTLE_SECONDS = 5.0

# Kills the nodes whose ids it was told when this process is gone, however it went: its end of the pipe closes then.
_WATCHER = """
import os, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class _Watcher:
    """A process that outlives this one by a moment, to clean up after it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _WATCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class Node:
    """One node of a `LocalCluster`."""

    def __init__(self, name: str, address: str, folder: Path, watcher: _Watcher, command: Sequence[str]) -> None:
        self.name = name
        """Its name in the cluster."""
        self.address = address
        """Where it listens, "host:port"."""
        self.folder = folder
        """Its configuration, its log, and its data."""
        self._watcher = watcher
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """True if its process is there, be it paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def auto_commits(self) -> bool:
        """True if nodes like it become members by themselves ([cluster] auto_commit)."""
        return bool(tomllib.loads((self.folder / "node.toml").read_text())["cluster"].get("auto_commit"))

    @property
    def log(self) -> str:
        """What it logged, over all of its starts."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, timeout: Seconds = START_SECONDS) -> None:
        """Start it on its data folder; returns when it is ready.

        Raises:
            ConfigError: it refused its configuration.
            QuorateError: it ended, or was not ready in time; with what it logged.
        """
        self._wait_ready(seconds(timeout), self._spawn())

    def _spawn(self) -> int:
        """Start its process; returns how much it had logged before."""
        if self.running:
            raise InvalidRequest(f"node {self.name} runs already")
        logged = len(self.log)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("QUORATE__")}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "serve", "--config", str(self.folder / "node.toml")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self._paused = False
        self._watcher.add(self._process.pid)
        return logged

    def _wait_ready(self, timeout: float, logged: int) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        deadline = time.monotonic() + timeout
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and time.monotonic() < deadline:
                if selector.select(0.1):
                    part = os.read(process.stdout.fileno(), 4096)
                    if not part:
                        break
                    line += part
        process.stdout.close()
        if line.startswith(b"quorate ready"):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        code = process.poll()
        self.kill()
        said = self.log[logged:].strip()[-2000:]
        if code == 2:
            raise ConfigError(said)
        state = f"ended with code {code}" if code is not None else f"was not ready within {timeout:g} s"
        raise QuorateError(f"node {self.name} {state}: {said}")

    def kill(self) -> None:
        """Kill it (SIGKILL). What its storage had not made durable is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it cleanly (SIGTERM): requests under way are finished."""
        self.resume()
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._watcher.remove(process.pid)
        self._process = None
        self._paused = False

    def wipe(self) -> None:
        """Lose its data folder. It must not run."""
        if self.running:
            raise InvalidRequest(f"node {self.name} runs: stop() or kill() it before wipe()")
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        if self._process is not None and self.running and self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.address!r}, {'running' if self.running else 'down'})"


class LocalCluster:
    """Real node processes on free loopback ports, one worker each; gone when this object, or this process, is.

    Args:
        nodes: how many.
        storage: the storage plugin: "memory" or "lmdb".
        membership: the membership plugin: "static", or "gossip": nodes that know one seed.
        config: any keys of a node's configuration, section by section, for all nodes.
        folder: where to keep data and logs. Default: a temporary folder, removed at the end.
        command: what runs a node, for one with plugins of your own: ["target/release/my-node"].
            Default: this Python's quorate.
    """

    def __init__(
        self,
        nodes: int = 3,
        storage: str = "memory",
        membership: str = "static",
        config: Mapping[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= 64:
            raise InvalidRequest(f"nodes={nodes!r}: use 1 to 64")
        if isinstance(command, str) or (command is not None and not command):
            raise InvalidRequest(f"command={command!r}: use a list, a program and its arguments")
        command = [sys.executable, "-m", "quorate"] if command is None else [str(part) for part in command]
        for name, section in (config or {}).items():
            if not isinstance(section, Mapping):
                raise InvalidRequest(f"config[{name!r}]={section!r}: use a section, {{key: value}}")
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="quorate-") if folder is None else folder)
        """Where data and logs are."""
        self._watcher = _Watcher()
        self.nodes: list[Node] = []
        """The nodes, also as ``cluster[0]``."""
        self._finalizer = weakref.finalize(
            self, _clean_up, os.getpid(), self.nodes, self._watcher, self.folder, self._temporary
        )
        self._storage, self._membership, self._config, self._command = storage, membership, config or {}, command
        self._founders = nodes
        self._named = nodes
        addresses = [f"127.0.0.1:{port}" for port in _free_ports(nodes)]
        names = [f"n{number}" for number in range(nodes)]
        members = [{"name": name, "address": address} for name, address in zip(names, addresses, strict=True)]
        for name, address in zip(names, addresses, strict=True):
            self.nodes.append(self._prepare(name, address, _membership(membership, members), ""))
        try:
            # All at once: nodes that have to find each other are ready when they have.
            logged = [node._spawn() for node in self.nodes]
            for node, before in zip(self.nodes, logged, strict=True):
                node._wait_ready(START_SECONDS, before)
            self.wait_connected()
        except BaseException:
            self.close()
            raise

    def _prepare(self, name: str, address: str, membership: dict[str, Any], zone: str) -> Node:
        """Write a node's configuration."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        own: dict[str, Any] = {
            "node": {"name": name, "listen": address, "data": str(place / "data"), "workers": 1, "zone": zone},
            "cluster": {"id": f"local-{self.folder.name}", "auto_commit": self._membership == "gossip"},
            "storage": {"engine": self._storage},
            "membership": membership,
            "faults": {"enabled": True},
        }
        _merge(own, self._config)
        (place / "node.toml").write_text(dumps(own))
        return Node(name, address, place, self._watcher, self._command)

    def add_node(self, *, zone: str = "", timeout: Seconds = START_SECONDS) -> Node:
        """Start one more node and make it a member; returns when it is one, which is before it has copied its part.

        Its number is the last: ``cluster[-1]``. `wait_settled` waits until it holds what it should.

        Raises:
            QuorateError: it did not start, or was no member in time.
        """
        deadline = time.monotonic() + seconds(timeout)
        others = self.url
        node = self._start_waiting(zone=zone, timeout=timeout)
        with connect(others, timeout=5.0) as db:
            if not node.auto_commits:
                db._native.cluster("join", node.name, node.address, zone, 100)
            while not self._is_member(db, node.name):
                if time.monotonic() > deadline:
                    report = db._native.cluster("show")
                    raise QuorateError(f"{node.name} is no member after {timeout} s: {report}")
                time.sleep(0.05)
        return node

    def _start_waiting(self, *, zone: str = "", timeout: Seconds = START_SECONDS) -> Node:
        """Start one more node that the others find, or are told of, and that is no member yet."""
        name, self._named = f"n{self._named}", self._named + 1
        address = f"127.0.0.1:{_free_ports(1)[0]}"
        members = [{"name": node.name, "address": node.address} for node in self.nodes]
        membership: dict[str, Any]
        if self._membership == "gossip":
            # It expects more than itself: it founds nothing, it finds the others.
            seeds = [member["address"] for member in members]
            membership = {"plugin": "gossip", "seeds": seeds, "expect": max(self._founders, 2)}
        else:
            own = {"name": name, "address": address}
            membership = {"plugin": self._membership, "members": [*members, own], "join": True}
        node = self._prepare(name, address, membership, zone)
        self.nodes.append(node)
        node.start(timeout)
        if self._membership == "gossip":
            self._wait_found(name, seconds(timeout))
        return node

    def _wait_found(self, name: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        first = next((node for node in self.nodes if node.running and not node._paused), self.nodes[0])
        with connect(first.address, timeout=5.0, follow=False) as client:
            while True:
                members = json.loads(client._native.cluster("show"))["members"]
                if any(member["name"] == name for member in members):
                    return
                if time.monotonic() > deadline:
                    raise QuorateError(f"{name} was not found after {timeout:g} s")
                time.sleep(0.05)

    def remove_node(self, number: int, *, force: bool = False, timeout: Seconds = 60.0) -> None:
        """Take a node out: it hands over what it holds and is stopped. The nodes after it move up by one number.

        Args:
            number: which.
            force: its disk is lost: it is killed first, and hands nothing over.
            timeout: how long that may take.

        Raises:
            InvalidRequest: too few nodes would be left.
            QuorateError: it had not handed over everything in time.
        """
        node = self.nodes[number]
        if force:
            node.kill()
        others = ",".join(other.address for other in self.nodes if other is not node)
        deadline = time.monotonic() + seconds(timeout)
        with connect(others or node.address, timeout=5.0) as db:
            if force:
                db._native.cluster("remove", node.name)
                self.nodes.remove(node)
                return
            while True:
                db._native.cluster("leave", node.name)
                self.wait_settled(max(0.1, deadline - time.monotonic()))
                if not self._is_member(db, node.name):
                    break
                # It gave way to another change, made elsewhere at the same moment.
        node.stop()
        self.nodes.remove(node)

    def _is_member(self, db: Client, name: str) -> bool:
        members = json.loads(db._native.cluster("show"))["members"]
        return any(member["name"] == name and member["partitions"] for member in members)

    def wait_settled(self, timeout: Seconds = 60.0) -> None:
        """Wait until no change of layout is under way on any running node, and all of them go by the same.

        Raises:
            QuorateError: one still is; with how far it is and whom it waits for.
        """
        deadline = time.monotonic() + seconds(timeout)
        pause = 0.02
        with contextlib.ExitStack() as open_clients:
            clients: dict[str, Client] = {}
            while True:
                layouts, changes = set(), []
                for node in self.nodes:
                    if node.running and not node._paused:
                        if node.address not in clients:
                            client = connect(node.address, timeout=5.0, follow=False)
                            clients[node.address] = open_clients.enter_context(client)
                        report = json.loads(clients[node.address]._native.cluster("show"))
                        layouts.add(report["digest"])
                        changes += [f"{node.name}: {report['change']}"] if report["change"] else []
                if len(layouts) <= 1 and not changes:
                    return
                if time.monotonic() > deadline:
                    raise QuorateError(
                        f"a change of layout is under way after {timeout} s: {'; '.join(changes) or layouts}"
                    )
                # Whoever waits long is not to be what the nodes are busy with.
                time.sleep(pause)
                pause = min(1.5 * pause, 0.5)

    @property
    def url(self) -> str:
        """All nodes' addresses, "host:port,host:port,…"."""
        return ",".join(node.address for node in self.nodes)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def __len__(self) -> int:
        return len(self.nodes)

    def connect(self, *, timeout: Seconds = 2.0, follow: bool = True) -> Client:
        """Connect a client to the cluster."""
        return connect(self.url, timeout=timeout, follow=follow)

    def wait_connected(self, timeout: Seconds = SETTLE_SECONDS) -> None:
        """Wait until every running node has connections to every other running one.

        Raises:
            QuorateError: they had not in time; with who misses whom.
        """
        deadline = time.monotonic() + seconds(timeout)
        while True:
            missing = self._missing_connections()
            if not missing:
                return
            if time.monotonic() > deadline:
                raise QuorateError(f"nodes are not connected after {timeout} s: {'; '.join(missing)}")
            time.sleep(0.01)

    def _missing_connections(self) -> list[str]:
        running = [node for node in self.nodes if node.running and not node._paused]
        names = {node.name for node in running}
        missing = []
        for node in running:
            with connect(node.address, timeout=1.0, follow=False) as client:
                status = client.status()
                # With a node missing it may have to wait for it.
                if status["recovering"] and len(running) == len(self.nodes):
                    missing.append(f"{node.name} is recovering ({status['recovering']} partitions)")
                for member in status["members"]:
                    if member["name"] in names and member["state"] != "up":
                        missing.append(f"{node.name} does not reach {member['name']} ({member['last_error']})")
        return missing

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut the network between groups of nodes, by number; nodes in no group are cut off from all."""
        grouped = [number for group in groups for number in group]
        if len(set(grouped)) != len(grouped) or any(not 0 <= number < len(self.nodes) for number in grouped):
            raise InvalidRequest(f"partition{groups!r}: name each of the nodes 0 to {len(self.nodes) - 1} at most once")
        for number, node in enumerate(self.nodes):
            side = next((set(group) for group in groups if number in group), {number})
            self._set_faults(node, [other.name for at, other in enumerate(self.nodes) if at not in side])

    def cut(self, sender: int, receiver: int) -> None:
        """Lose everything that one node sends to another, and nothing else. Replaces a partition of the sender."""
        for number in (sender, receiver):
            if not 0 <= number < len(self.nodes):
                raise InvalidRequest(f"cut({sender}, {receiver}): name two of the nodes 0 to {len(self.nodes) - 1}")
        self._set_faults(self.nodes[sender], [">" + self.nodes[receiver].name])

    def heal(self) -> None:
        """End all partitions, and wait until the nodes are connected again."""
        for node in self.nodes:
            self._set_faults(node, [])
        self.wait_connected()

    def _set_faults(self, node: Node, cut: list[str]) -> None:
        if node.running and not node._paused:
            with connect(node.address, follow=False) as client:
                client._native.set_faults(cut)

    def wait_converged(self, timeout: Seconds = 10.0) -> None:
        """Wait until all replicas of every partition hold the same. Compares only: what repairs are reads.

        Raises:
            QuorateError: some partitions still differ; with which, and how.
        """
        deadline = time.monotonic() + seconds(timeout)
        while True:
            differing = self._differing_partitions()
            if not differing:
                return
            if time.monotonic() > deadline:
                raise QuorateError(
                    f"{len(differing)} partitions differ after {timeout} s; the first: {differing[0]}"
                )
            time.sleep(0.05)

    def _differing_partitions(self) -> list[str]:
        held: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        for node in self.nodes:
            if not node.running:
                return [f"node {node.name} is down"]
            with connect(node.address, timeout=5.0, follow=False) as client:
                for number, replicas, records, digest in client._native.fingerprint():
                    held.setdefault((number, replicas), {})[node.name] = (records, digest)
        differing = []
        for (number, replicas), holders in sorted(held.items()):
            if len(holders) != replicas or len(set(holders.values())) != 1:
                shown = ", ".join(f"{name} {records} records, {digest:016x}" for name, (records, digest) in holders.items())
                differing.append(f"partition {number} of buckets with n={replicas}: {shown}")
        return differing

    def close(self) -> None:
        """End all nodes and, unless a folder was given, remove their data."""
        self._finalizer()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clean_up(owner: int, nodes: list[Node], watcher: _Watcher, folder: Path, temporary: bool) -> None:
    if os.getpid() != owner:
        return  # a forked child ends: the cluster is its parent's
    for node in nodes:
        node.kill()
    watcher.close()
    if temporary:
        shutil.rmtree(folder, ignore_errors=True)


def _membership(plugin: str, members: list[dict[str, str]]) -> dict[str, Any]:
    if plugin == "gossip":
        return {"plugin": plugin, "seeds": [members[0]["address"]], "expect": len(members)}
    return {"plugin": plugin, "members": members}


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, held open together so that they differ."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(int(listener.getsockname()[1]))
        return ports


def _merge(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, Mapping) and isinstance(own.get(key), dict):
            _merge(own[key], value)
        else:
            own[key] = value
