"""A coordinator and two agents, once for all tests; namespaces are each test's own."""

from __future__ import annotations

import glob
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import kvferry
from kvferry import Agent, Checksum, Client, Coordinator, Layout, Namespace

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


class Cluster:
    """Agents "a" and "b", each with a client."""

    def __init__(self, transport: str) -> None:
        self.coordinator = Coordinator()
        options = {"coordinators": self.coordinator.url, "pool_bytes": "8MiB", "transport": transport}
        self.agent_a = Agent(node="a", **options)
        self.agent_b = Agent(node="b", **options)
        self.a: Client = self.agent_a.connect()
        self.b: Client = self.agent_b.connect()

    def end(self) -> None:
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
def published(cluster: Cluster) -> Namespace:
    """A namespace with blocks 0 to 3 in the pool of "a"."""
    return publish(cluster.a, a_namespace())


def publish(client: Client, namespace: Namespace, seeds: range = range(4)) -> Namespace:
    client.register_pool(namespace)
    blocks = [block(seed, namespace.layout.block_bytes) for seed in seeds]
    put = client.put(namespace, [key(seed) for seed in seeds], blocks, wait_announced=10)
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
