"""Pulls in stages: the first planes of every block first."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from conftest import Cluster, a_namespace, block, key, publish

import kvferry
from kvferry import Geometry, Kind, Namespace, Plane, SharedMemory

PLANES, PLANE, SLOTS = 4, 16 << 10, 8
STAGES = [1, 1, 2]


class Reader:
    """A region of "b", plane after plane, and a link to "a" of whose answers less than two stages come through."""

    def __init__(self, gated: Cluster) -> None:
        assert gated.gate is not None
        self.cluster, self.gate = gated, gated.gate
        self.namespace: Namespace = publish(gated.a, a_namespace(PLANES, PLANE))
        self.memory = SharedMemory(PLANES * SLOTS * PLANE)
        planes = [Plane(plane * SLOTS * PLANE, PLANE, PLANE) for plane in range(PLANES)]
        geometry = Geometry(SLOTS, tuple(planes))
        self.region = gated.b.register_fd(self.namespace, self.memory.fd, geometry)
        assert gated.b.pull(self.namespace, [key(3)], region=self.region, slots=[0]).result(10).ok
        self.gate.allow(3 * PLANE * 1.5)

    def pull(self, **options: object) -> kvferry.Pull:
        """Blocks 0 to 2 into slots 4 to 6."""
        keys = [key(seed) for seed in range(3)]
        return self.cluster.b.pull(
            self.namespace, keys, region=self.region, slots=[4, 5, 6], stages=STAGES, **options  # type: ignore[arg-type]
        )

    def has(self, planes: range) -> bool:
        """Whether these planes of all three blocks are there."""
        view = memoryview(self.memory)

        def there(seed: int, plane: int) -> bool:
            at = (plane * SLOTS + 4 + seed) * PLANE
            return bytes(view[at : at + PLANE]) == block(seed, PLANES * PLANE)[plane * PLANE : (plane + 1) * PLANE]

        return all(there(seed, plane) for seed in range(3) for plane in planes)


@pytest.fixture
def reader(gated: Cluster) -> Iterator[Reader]:
    yield Reader(gated)


def test_a_stage_can_be_waited_for_while_the_next_is_under_way(reader: Reader) -> None:
    pull = reader.pull()
    assert pull.wait_stage(1, 10)
    assert reader.has(range(1)) and not reader.has(range(2, 4))
    assert pull.stages_landed == 1 and not pull.done() and pull.outcomes() == []
    assert not pull.wait_stage(2, 0.1)
    reader.gate.allow(math.inf)
    assert pull.wait_stage(3, 10) and reader.has(range(4))
    assert pull.result(10).ok and pull.stages_landed == 3
    assert pull.wait_stage(7, 0), "it has ended"


def test_stages_with_asyncio(reader: Reader) -> None:
    async def wait() -> None:
        pull = reader.pull()
        await asyncio.wait_for(pull.stage(1), 10)
        assert reader.has(range(1)) and not pull.done()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pull.stage(2), 0.1)
        reader.gate.allow(math.inf)
        await asyncio.wait_for(pull.stage(2), 10)
        assert reader.has(range(2))
        assert (await pull).ok

    asyncio.run(wait())


def test_who_waits_for_a_stage_hears_when_the_pull_is_given_up(reader: Reader) -> None:
    pull = reader.pull()
    assert pull.wait_stage(1, 10)
    threading.Timer(0.1, pull.cancel).start()
    assert pull.wait_stage(2, 10)
    assert [it.kind for it in pull.outcomes()] == [Kind.CANCELLED] * 3
    assert pull.stages_landed == 1


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_who_waits_for_a_stage_hears_when_the_connection_ends(reader: Reader, how: str) -> None:
    pull = reader.pull()
    assert pull.wait_stage(1, 10)

    def end() -> None:
        if how == "closed":
            reader.cluster.b.close()
        else:
            os.kill(reader.cluster.agent_b.pid, signal.SIGKILL)

    threading.Timer(0.1, end).start()
    assert pull.wait_stage(2, 10)
    asyncio.run(asyncio.wait_for(pull.stage(2), 10))
    kind = Kind.CANCELLED if how == "closed" else Kind.AGENT_LOST
    assert [it.kind for it in pull.outcomes()] == [kind] * 3
    assert pull.stages_landed == 1 and pull.done()


def test_what_cannot_be_is_refused(cluster: Cluster) -> None:
    namespace = publish(cluster.a, a_namespace(PLANES, PLANE))
    pull = cluster.a.pull(namespace, [key(0)], stages=[2, 2])
    with pytest.raises(kvferry.InvalidArgumentError, match="an engine's region"):
        pull.result(10)
    assert pull.wait_stage(1, 10), "it has ended"
