"""Cluster of real node processes on this machine, for tests and trials."""

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
CONNECT_SECONDS = 5.0

# Program of the watcher process. It reads process ids of nodes from a pipe: "+pid" adds one, "-pid"
# removes one. When the process that made the cluster ends, for any reason, the pipe closes. The
# watcher then kills the nodes that are left.
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
    """Process that kills the nodes if their parent process has ended without stopping them."""

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
    """Node of a `LocalCluster`: one process with one data folder.

    Example::

        cluster[1].kill()   # SIGKILL
        cluster[1].start()  # on the same data folder
    """

    def __init__(self, name: str, address: str, folder: Path, watcher: _Watcher, command: Sequence[str]) -> None:
        self.name = name
        """Name of the node in the cluster, such as ``"n0"``."""
        self.address = address
        """Address at which the node listens, ``"host:port"``."""
        self.folder = folder
        """Folder of the node: configuration (``node.toml``), log (``log``) and data (``data``)."""
        self._watcher = watcher
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int | None:
        """Id of the process of the node, or None if it does not run."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """True if the process of the node exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def auto_commits(self) -> bool:
        """True if new nodes become members without an operator ([cluster] auto_commit)."""
        return bool(tomllib.loads((self.folder / "node.toml").read_text())["cluster"].get("auto_commit"))

    @property
    def log(self) -> str:
        """Log of the node, over all of its starts."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, timeout: Seconds = START_SECONDS) -> None:
        """Start the node on its data folder, and wait until it is ready.

        Args:
            timeout: longest wait, in seconds or as a ``timedelta``. Default: 20 s.

        Raises:
            InvalidRequest: the node is already running.
            ConfigError: the node refused its configuration.
            QuorateError: the node ended, or was not ready before the timeout. The message has the
                end of its log.
        """
        self._wait_ready(seconds(timeout), self._spawn())

    def _spawn(self) -> int:
        """Start the process, and return the length of the log before the start, in characters."""
        if self.running:
            raise InvalidRequest(f"node {self.name} is already running: stop() or kill() it first")
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
        logged_now = self.log[logged:].strip()[-2000:]
        if code == 2:
            raise ConfigError(logged_now)
        state = f"ended with code {code}" if code is not None else f"was not ready within {timeout:g} s"
        raise QuorateError(f"node {self.name} {state}: {logged_now}")

    def kill(self) -> None:
        """Kill the node (SIGKILL). Changes that its storage has not made durable are lost.

        Does nothing if the node does not run.
        """
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the node (SIGTERM). It finishes the requests in progress first.

        A node that has not ended after 10 s is killed. Does nothing if the node does not run.
        """
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
        """Delete the data of the node, as if its disk were lost.

        Raises:
            InvalidRequest: the node is running.
        """
        if self.running:
            raise InvalidRequest(f"node {self.name} runs: stop() or kill() it before wipe()")
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def pause(self) -> None:
        """Freeze the process of the node (SIGSTOP) until `resume`. Its connections stay open."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Continue the process of a paused node (SIGCONT)."""
        if self._process is not None and self.running and self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.address!r}, {'running' if self.running else 'down'})"


class LocalCluster:
    """Cluster of real node processes on free loopback ports, with one worker each.

    The nodes are ready when the constructor returns. They end when the cluster is closed or garbage
    collected, or when this process ends.

    Args:
        nodes: number of nodes, 1 to 64. Default: 3.
        storage: storage plugin: "memory" (default) or "lmdb".
        membership: membership plugin: "static" (default), or "gossip", with the first node as the
            only seed.
        config: settings for the configuration of all nodes, ``{section: {key: value}}``. See
            docs/configuration.md.
        folder: folder for the data and logs of the nodes. Default: a temporary folder, which is
            removed when the cluster is closed.
        command: program that runs a node, with its arguments, for a build with your own plugins:
            ``["target/release/my-node"]``. Default: the ``quorate`` command of this package.

    Raises:
        InvalidRequest: an argument is malformed.
        ConfigError: a node refused its configuration.
        QuorateError: a node ended, or was not ready after 20 s, or the nodes did not connect to
            each other.

    Example::

        with quorate.LocalCluster(nodes=3, storage="lmdb") as cluster:
            db = cluster.connect()
            cluster[0].kill()
            db.bucket("carts").put("ann", b"milk")  # two of three nodes are enough
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
        """Folder with one folder for each node, with its configuration, data and log."""
        self._watcher = _Watcher()
        self.nodes: list[Node] = []
        """Nodes of the cluster. ``cluster[0]`` is the first one."""
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
            # Start all processes before waiting for any: with gossip, no node is ready before the
            # nodes have discovered each other.
            logged = [node._spawn() for node in self.nodes]
            for node, before in zip(self.nodes, logged, strict=True):
                node._wait_ready(START_SECONDS, before)
            self.wait_connected()
        except BaseException:
            self.close()
            raise

    def _prepare(self, name: str, address: str, membership: dict[str, Any], zone: str) -> Node:
        """Write the configuration of a node that does not run yet, and return the node."""
        own_folder = self.folder / name
        own_folder.mkdir(parents=True, exist_ok=True)
        own: dict[str, Any] = {
            "node": {"name": name, "listen": address, "data": str(own_folder / "data"), "workers": 1, "zone": zone},
            "cluster": {"id": f"local-{self.folder.name}", "auto_commit": self._membership == "gossip"},
            "storage": {"engine": self._storage},
            "membership": membership,
            "faults": {"enabled": True},
        }
        _merge(own, self._config)
        (own_folder / "node.toml").write_text(dumps(own))
        return Node(name, address, own_folder, self._watcher, self._command)

    def add_node(self, *, zone: str = "", timeout: Seconds = START_SECONDS) -> Node:
        """Start one more node and make it a member of the cluster.

        The node is ``cluster[-1]``. It still copies its partitions when the call returns;
        `wait_settled` waits until it has them.

        Args:
            zone: failure zone of the node. Default: none.
            timeout: longest wait, in seconds or as a ``timedelta``. Default: 20 s.

        Returns:
            The new node.

        Raises:
            QuorateError: the node did not start, or was not a member before the timeout.
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
                    raise QuorateError(f"node {node.name} is not a member after {timeout} s: {report}")
                time.sleep(0.05)
        return node

    def _start_waiting(self, *, zone: str = "", timeout: Seconds = START_SECONDS) -> Node:
        """Start a node that is not a member yet. With gossip, wait until an older node knows it."""
        name, self._named = f"n{self._named}", self._named + 1
        address = f"127.0.0.1:{_free_ports(1)[0]}"
        members = [{"name": node.name, "address": node.address} for node in self.nodes]
        membership: dict[str, Any]
        if self._membership == "gossip":
            # With `expect` of 2 or more, the node cannot create a cluster of its own. It waits
            # until it has discovered the existing one.
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
                    raise QuorateError(f"node {first.name} has not discovered node {name} after {timeout:g} s")
                time.sleep(0.05)

    def remove_node(self, number: int, *, force: bool = False, timeout: Seconds = 60.0) -> None:
        """Remove a node from the cluster: it hands over its data, leaves, and is stopped.

        The numbers of the nodes after it decrease by one.

        Args:
            number: number of the node, from 0.
            force: True if the disk of the node counts as lost. The node is killed first and hands
                nothing over, and the call does not wait for the layout change. Default: False.
            timeout: longest wait for the handover, in seconds or as a ``timedelta``. Default: 60 s.

        Raises:
            InvalidRequest: too few nodes would be left.
            QuorateError: the node has not handed over its data before the timeout.
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
                # The leave lost against another change, which another node committed at the same
                # time. Request it again.
        node.stop()
        self.nodes.remove(node)

    def _is_member(self, db: Client, name: str) -> bool:
        members = json.loads(db._native.cluster("show"))["members"]
        return any(member["name"] == name and member["partitions"] for member in members)

    def wait_settled(self, timeout: Seconds = 60.0) -> None:
        """Wait until no layout change is in progress, and all running nodes have the same layout.

        Paused and stopped nodes are not asked.

        Args:
            timeout: longest wait, in seconds or as a ``timedelta``. Default: 60 s.

        Raises:
            QuorateError: a change is still in progress after the timeout. The message has its phase
                and the nodes that it waits for.
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
                        f"the cluster has not settled after {seconds(timeout)} s: "
                        + ("; ".join(changes) or f"the nodes have different layouts: {', '.join(map(str, layouts))}")
                    )
                # The pause between two polls grows, so that polling does not slow the nodes down.
                time.sleep(pause)
                pause = min(1.5 * pause, 0.5)

    @property
    def url(self) -> str:
        """Addresses of all nodes, ``"host:port,host:port,…"``."""
        return ",".join(node.address for node in self.nodes)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def __len__(self) -> int:
        return len(self.nodes)

    def connect(self, *, timeout: Seconds = 2.0, follow: bool = True) -> Client:
        """Connect a client to the cluster.

        Args:
            timeout: longest duration of an operation of the client, retries included, in seconds or
                as a ``timedelta``. Default: 2 s.
            follow: True (default): the client learns later nodes from the cluster. False: it uses
                only the nodes that the cluster has now.

        Returns:
            A connected client.

        Raises:
            Unavailable: no node can be reached.
        """
        return connect(self.url, timeout=timeout, follow=follow)

    def wait_connected(self, timeout: Seconds = CONNECT_SECONDS) -> None:
        """Wait until every running node has connections to every other running node.

        If all nodes run, also wait until no node recovers any more. Paused nodes do not count as
        running.

        Args:
            timeout: longest wait, in seconds or as a ``timedelta``. Default: 5 s.

        Raises:
            QuorateError: connections are still missing after the timeout. The message names the
                nodes.
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
                # Recovery may have to wait for a node that does not run, so it counts only if all
                # nodes run.
                if status["recovering"] and len(running) == len(self.nodes):
                    missing.append(f"{node.name} is recovering ({status['recovering']} partitions)")
                for member in status["members"]:
                    if member["name"] in names and member["state"] != "up":
                        missing.append(f"{node.name} does not reach {member['name']} ({member['last_error']})")
        return missing

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut the network between groups of nodes. Clients still reach all nodes.

        Replaces all earlier partitions and cuts. Paused and stopped nodes are not changed.

        Args:
            groups: numbers of the nodes of each group, from 0. Nodes of one group reach each other.
                A node in no group is cut off from all others.

        Raises:
            InvalidRequest: a number is out of range or occurs twice, or ``config`` turned faults
                off (``[faults] enabled``).

        Example::

            cluster.partition([0], [1, 2])
            cluster.heal()
        """
        grouped = [number for group in groups for number in group]
        if len(set(grouped)) != len(grouped) or any(not 0 <= number < len(self.nodes) for number in grouped):
            raise InvalidRequest(f"partition{groups!r}: name each of the nodes 0 to {len(self.nodes) - 1} at most once")
        for number, node in enumerate(self.nodes):
            side = next((set(group) for group in groups if number in group), {number})
            self._set_faults(node, [other.name for at, other in enumerate(self.nodes) if at not in side])

    def cut(self, sender: int, receiver: int) -> None:
        """Drop all messages from one node to another. The other direction still works.

        Replaces earlier partitions and cuts of the sender.

        Args:
            sender: number of the node whose messages are dropped, from 0.
            receiver: number of the node that does not receive them, from 0.

        Raises:
            InvalidRequest: a number is out of range.
        """
        for number in (sender, receiver):
            if not 0 <= number < len(self.nodes):
                raise InvalidRequest(f"cut({sender}, {receiver}): name two of the nodes 0 to {len(self.nodes) - 1}")
        self._set_faults(self.nodes[sender], [">" + self.nodes[receiver].name])

    def heal(self) -> None:
        """End all partitions and cuts, and wait until the nodes are connected again.

        Raises:
            QuorateError: the nodes are not connected after 5 s.
        """
        for node in self.nodes:
            self._set_faults(node, [])
        self.wait_connected()

    def _set_faults(self, node: Node, cut: list[str]) -> None:
        if node.running and not node._paused:
            with connect(node.address, follow=False) as client:
                client._native.set_faults(cut)

    def wait_converged(self, timeout: Seconds = 10.0) -> None:
        """Wait until all replicas of every partition hold the same records.

        This call only compares. Hinted handoff, anti-entropy and read repair make replicas equal.

        Args:
            timeout: longest wait, in seconds or as a ``timedelta``. Default: 10 s.

        Raises:
            QuorateError: a node is down, or partitions still differ after the timeout. The message
                has the number of partitions that differ, and the records of the first one.
        """
        deadline = time.monotonic() + seconds(timeout)
        while True:
            differing = self._differing_partitions()
            if not differing:
                return
            if time.monotonic() > deadline:
                raise QuorateError(
                    f"{len(differing)} partitions still differ between their replicas after {timeout} s; "
                    f"the first: {differing[0]}"
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
        """Kill all nodes. Remove their folders too, unless the cluster was given a ``folder``."""
        self._finalizer()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clean_up(owner: int, nodes: list[Node], watcher: _Watcher, folder: Path, temporary: bool) -> None:
    if os.getpid() != owner:
        return  # This is a forked child: the nodes belong to its parent.
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
    """Return ports on which no process listens. All are bound at once, so that they differ."""
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
