"""A coordinator and two agents, once for all tests; namespaces are each test's own."""

from __future__ import annotations

import glob
import itertools
import math
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import kvferry
from kvferry import Agent, Checksum, Client, Coordinator, Layout, Namespace

# For all processes that are started here: nobody is taken for silent or stopped because the machine let him wait for some
# seconds.
os.environ |= {
    "KVFERRY_HIDE_AFTER_MS": "60000",
    "KVFERRY_PURGE_AFTER_MS": "120000",
    "KVFERRY_STALL_BOUND_MS": "30000",
    "KVFERRY_PULL_TIMEOUT_MS": "60000",
}

BLOCK = 64 << 10
HASH = 32
_numbers = itertools.count()


def block(seed: int, nbytes: int = BLOCK) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(seed).randbytes(nbytes)


def key(seed: int, nbytes: int = HASH) -> bytes:
    """A hash that no other seed has."""
    return random.Random(f"hash {seed}").randbytes(nbytes)


def a_namespace(planes: int = 1, plane_bytes: int = BLOCK, **options: object) -> Namespace:
    """One that nobody else uses."""
    layout = Layout("u8", 16, planes, plane_bytes)
    return Namespace(f"test/{next(_numbers)}", layout, HASH, **options)  # type: ignore[arg-type]


class Gate:
    """Stands between readers and an owner's data port: what the owner says comes through as far as it is allowed to."""

    def __init__(self, listen: tuple[str, int], owner: tuple[str, int]) -> None:
        self._owner = owner
        self._changed = threading.Condition()
        self._left: float = math.inf
        self._server = socket.create_server(listen)
        threading.Thread(target=self._accept, daemon=True).start()

    def allow(self, nbytes: float) -> None:
        """From now on so much more."""
        with self._changed:
            self._left = nbytes
            self._changed.notify_all()

    def close(self) -> None:
        self._server.close()
        self.allow(math.inf)

    def _accept(self) -> None:
        while True:
            try:
                reader = self._server.accept()[0]
                owner = socket.create_connection(self._owner)
            except OSError:
                return
            for way in ((reader, owner, False), (owner, reader, True)):
                threading.Thread(target=self._forward, args=way, daemon=True).start()

    def _forward(self, source: socket.socket, to: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(64 << 10):
                rest = memoryview(data)
                while rest:
                    piece = rest[: self._take(len(rest))] if counted else rest
                    to.sendall(piece)
                    rest = rest[len(piece) :]
            to.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            to.close()

    def _take(self, most: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._left > 0)
            taken = int(min(most, self._left))
            self._left -= taken
            return taken


class Cluster:
    """Agents "a" and "b", each with a client. `gated`: what "a" says to "b" goes through `gate`, on one connection."""

    def __init__(self, transport: str, gated: bool = False) -> None:
        self.coordinator = Coordinator()
        options: dict[str, object] = {"coordinators": self.coordinator.url, "pool_bytes": "8MiB", "transport": transport}
        there = {"advertise_host": "127.0.0.2"} if gated else {}
        here = {"tcp_connections_per_peer": 1, "stall_bound_ms": 30_000} if gated else {}
        self.agent_a = Agent(node="a", **options, **there)
        self.agent_b = Agent(node="b", **options, **here)
        self.gate: Gate | None = None
        if gated:
            host, port = self.agent_a.announced["data"].rsplit(":", 1)
            self.gate = Gate(("127.0.0.2", int(port)), (host, int(port)))
        self.a: Client = self.agent_a.connect()
        self.b: Client = self.agent_b.connect()

    def end(self) -> None:
        if self.gate is not None:
            self.gate.close()
        self.a.close()
        self.b.close()
        for process in (self.agent_a, self.agent_b, self.coordinator):
            process.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """For tests that leave it as it was."""
    made = Cluster("auto")
    yield made
    made.end()


@pytest.fixture
def over_tcp() -> Iterator[Cluster]:
    """Of a test's own, to be broken: an owner that is stopped is still read by shared memory, but not over TCP."""
    made = Cluster("tcp")
    yield made
    made.end()


@pytest.fixture
def gated() -> Iterator[Cluster]:
    """Of a test's own, over TCP, where the test says how much of the owner's answers comes through."""
    made = Cluster("tcp", gated=True)
    yield made
    made.end()


@pytest.fixture
def published(cluster: Cluster) -> Namespace:
    """A namespace with blocks 0 to 3 in the pool of "a"."""
    return publish(cluster.a, a_namespace())


def publish(client: Client, namespace: Namespace, seeds: range = range(4)) -> Namespace:
    client.register_pool(namespace)
    blocks = [block(seed, namespace.layout.block_bytes) for seed in seeds]
    put = client.put(namespace, [key(seed) for seed in seeds], blocks, wait_announced=60)
    assert (put.stored, put.announced) == (len(blocks), True)
    return namespace


def _has_stopped(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] in "TZX"
    except FileNotFoundError:
        return True


@contextmanager
def stopped(agent: Agent) -> Iterator[None]:
    """An agent that does not run meanwhile."""
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        # The signal is on its way until every thread has stopped.
        while not all(_has_stopped(path) for path in glob.glob(f"/proc/{agent.pid}/task/*/stat")):
            time.sleep(0.001)
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


__all__ = ["BLOCK", "HASH", "Checksum", "Cluster", "a_namespace", "block", "key", "kvferry", "publish", "stopped"]
