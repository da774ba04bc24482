"""Failures are classes, one per next move, and name who is meant."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from conftest import BLOCK, Checksum, Cluster, a_namespace, key

import kvferry
from kvferry import Agent, Coordinator, Geometry, Kind, Layout, Namespace, SharedMemory, _native, errors


def test_every_cause_has_a_class_with_its_next_move() -> None:
    for status in _native.CAUSES:
        error = errors.of(status, "text")
        assert type(error) is errors.BY_STATUS[status] and error.status == status and str(error) == "text"
        assert type(error) is not errors.KvferryError
    for kind in set(errors.BY_STATUS.values()):
        assert kind.__doc__ and issubclass(kind, errors.KvferryError)
        assert kind.__name__ in errors.__all__ and hasattr(kvferry, kind.__name__)


def test_what_is_wrong_is_refused_with_its_own_class(cluster: Cluster) -> None:
    a = cluster.a
    namespace = a_namespace()
    with pytest.raises(kvferry.NamespaceUnknownError) as refused:
        a.put("nobody/has/this", [key(0)], b"")
    assert "agent a" in str(refused.value) and refused.value.status == "namespace_unknown"
    pool = a.register_pool(namespace, 2 * BLOCK)
    other = Namespace(namespace.name, Layout("u8", 32, 1, BLOCK), 32)
    with pytest.raises(kvferry.NamespaceMismatchError):
        cluster.b.register_pool(other)
    with pytest.raises(kvferry.InvalidArgumentError):
        a.lookup(namespace, [b"x" * 16])
    with pytest.raises(ValueError, match="8 to 64"):
        a.lookup(namespace, [b"x" * 7])
    with pytest.raises(kvferry.BoundReachedError, match="split"):
        a.lookup(namespace, kvferry.PackedHashes(bytes(8 * 65537), 8))
    with pytest.raises(kvferry.InvalidArgumentError, match="timeout is 61"):
        a.lookup(namespace, [key(0)], timeout=61)
    with pytest.raises(kvferry.InvalidArgumentError, match="timeout is NaN"):
        a.lookup(namespace, [key(0)], timeout=float("nan"))
    with pytest.raises(kvferry.PoolFullError):
        a.reserve(pool, 3)
    with pytest.raises(kvferry.RegionUnknownError):
        a.reserve(12345, [0])
    with pytest.raises(kvferry.RegionUnknownError):
        a.region(12345)
    with pytest.raises(kvferry.SlotNotReservedError):
        a.seal(pool, [0], [key(0)])
    with pytest.raises(kvferry.PinUnknownError):
        a.release(987654321)
    with pytest.raises(kvferry.InvalidArgumentError, match="both"):
        a.pull(namespace, [key(0)], slots=[0])
    with pytest.raises(kvferry.InvalidArgumentError, match="1 slots for 2"):
        a.pull(namespace, [key(0), key(1)], region=pool, slots=[0])
    with pytest.raises(kvferry.SystemRefusedError):
        a.register_fd(namespace, 9999, Geometry.contiguous(1, BLOCK))
    memory = SharedMemory(2 * BLOCK)
    region = a.register_buffer(namespace, memory, Geometry.contiguous(2, BLOCK))
    region.reserve([0])
    region.seal([0], [key(0)])
    with a.pin(namespace, [key(0)]), pytest.raises(kvferry.SlotBusyError):
        region.reserve([0])
    region.reserve([0])
    with pytest.raises(kvferry.InvalidArgumentError):
        region.reserve([2])
    region.abort([0])
    region.unregister()
    with pytest.raises(kvferry.InvalidArgumentError, match="CUDA"):
        a.register_cuda(namespace, np.zeros(4), Geometry.contiguous(1, 4))


def test_a_pull_that_is_refused_has_outcomes_all_the_same(cluster: Cluster) -> None:
    pull = cluster.a.pull("nobody/has/this", [key(0), key(1)])
    with pytest.raises(kvferry.NamespaceUnknownError):
        pull.result(60)
    assert isinstance(pull.exception(0), kvferry.NamespaceUnknownError)
    outcomes = pull.outcomes()
    assert [(it.index, it.kind, it.settled, it.ok) for it in outcomes] == [
        (0, Kind.REFUSED, True, False),
        (1, Kind.REFUSED, True, False),
    ]
    assert all("nobody/has/this" in it.detail for it in outcomes)


def test_no_agent_is_unreachable() -> None:
    with pytest.raises(kvferry.AgentUnreachableError, match="/nowhere/agent.sock") as error:
        kvferry.connect("/nowhere/agent.sock", connect_timeout=0.1)
    assert isinstance(error.value, ConnectionError)


def test_the_socket_is_named_by_the_environment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFERRY_SOCKET", raising=False)
    with pytest.raises(kvferry.InvalidArgumentError, match="KVFERRY_SOCKET"):
        kvferry.connect()
    monkeypatch.setenv("KVFERRY_SOCKET", cluster.agent_b.socket)
    with kvferry.connect() as client:
        assert client.node == "b"


def test_a_closed_client_says_so(cluster: Cluster) -> None:
    with cluster.agent_a.connect() as client:
        waiting = client.background.stats()
    assert client.closed
    waiting.wait(60)
    assert waiting.done()
    with pytest.raises(kvferry.AgentLostError, match="closed"):
        client.stats()
    client.close()


def test_regions_end_with_their_client(cluster: Cluster) -> None:
    namespace = a_namespace()
    memory = SharedMemory(2 * BLOCK)
    with cluster.agent_a.connect() as client:
        region = client.register_buffer(namespace, memory, Geometry.contiguous(2, BLOCK))
    cluster.b.register_pool(namespace, BLOCK)
    deadline = time.monotonic() + 60
    while region.id in [it.region for it in cluster.a.stats().regions]:
        assert time.monotonic() < deadline, "the region is still there"
        time.sleep(0.01)


def test_an_agent_that_dies_is_lost_and_never_a_miss() -> None:
    with Coordinator() as coordinator, Agent(node="dies", coordinators=[coordinator.url]) as agent:
        client = agent.connect(call_timeout=60)
        namespace = a_namespace(checksum=Checksum.SAMPLED)
        client.register_pool(namespace, BLOCK)
        os.kill(agent.pid, signal.SIGKILL)
        with pytest.raises(kvferry.AgentLostError, match="agent dies"):
            client.lookup(namespace, [key(0)])
        pull = client.pull(namespace, [key(0)])
        with pytest.raises(kvferry.AgentLostError):
            pull.result(60)
        assert [it.kind for it in pull.outcomes()] == [Kind.AGENT_LOST]
        assert not agent.running


def test_a_coordinator_that_dies_is_never_a_miss() -> None:
    with Coordinator() as coordinator, Agent(node="left", coordinators=[coordinator.url]) as agent:
        client = agent.connect()
        namespace = a_namespace()
        client.register_pool(namespace, BLOCK)
        os.kill(coordinator.pid, signal.SIGKILL)
        with pytest.raises(kvferry.CoordinatorUnreachableError):
            client.lookup(namespace, [key(0)], timeout=20)
        result = client.pull(namespace, [key(0)], timeout=2).result(60)
        assert result.outcomes[0].kind in (Kind.LOCATE_FAILED, Kind.TIMED_OUT)
