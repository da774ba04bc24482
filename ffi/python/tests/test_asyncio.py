"""The same for asyncio: no thread waits, and a cancelled task gives its call up."""

from __future__ import annotations

import asyncio
import time

import pytest
from conftest import BLOCK, Cluster, a_namespace, block, key, publish, stopped

import kvferry
from kvferry import Evicted, Geometry, Kind, Place, SharedMemory

KEYS = [key(seed) for seed in range(4)]


def test_blocks_are_put_found_and_pulled(cluster: Cluster) -> None:
    async def main() -> None:
        a = await kvferry.aio.connect(cluster.agent_a.socket)
        async with a, await kvferry.aio.connect(cluster.agent_b.socket) as b:
            namespace = a_namespace()
            await a.register_pool(namespace)
            pool = await b.register_pool(namespace)
            assert (await b.region(pool.id)).slots == pool.slots
            data = [block(seed) for seed in range(4)]
            put = await a.put(namespace, KEYS, data, wait_announced=60)
            assert put.announced
            places = await asyncio.gather(*(b.lookup(namespace, [it]) for it in [*KEYS, key(9)]))
            assert places == [[Place.REMOTE]] * 4 + [[Place.MISSING]]
            pull = b.pull(namespace, [*KEYS, key(9)])
            seen = [outcome async for outcome in pull]
            result = await pull
            assert sorted(seen) == sorted(result.outcomes)
            assert [it.kind for it in result.outcomes] == [Kind.PULLED] * 4 + [Kind.MISSING]
            assert result.pin is not None
            assert [bytes(result.pin.view(at)) for at in range(4)] == data
            result.pin.release()
            pin = await b.pin(namespace, KEYS[:1])
            assert await b.evict(namespace) == Evicted(3, 1)
            await b.release(pin)
            memory = SharedMemory(2 * BLOCK)
            region = await b.register_buffer(namespace, memory, Geometry.contiguous(2, BLOCK))
            assert await b.reserve(region, [0]) == [0]
            await b.abort(region, [0])
            await b.reserve(region, [1])
            memoryview(memory)[BLOCK:] = block(8)
            assert (await b.seal(region, [1], [key(8)], wait_announced=60)).announced
            assert await a.lookup(namespace, [key(8)]) == [Place.REMOTE]
            assert await b.unregister(region) == 1
            claim = await b.claim(namespace, [key(60)])
            assert await b.renew_claims(claim.token) == 1
            assert await b.release_claims(claim.token) == 1
            assert (await b.stats()).node == b.node
            with pytest.raises(kvferry.NamespaceUnknownError):
                await b.put("nobody/has/this", [key(0)], b"")

    asyncio.run(main())


def test_the_loop_runs_while_a_call_waits(over_tcp: Cluster) -> None:
    async def main() -> None:
        async with await kvferry.aio.connect(over_tcp.agent_b.socket) as b:
            turns = 0
            with stopped(over_tcp.agent_b):
                call = asyncio.ensure_future(b.stats())
                for _ in range(20):
                    await asyncio.sleep(0.01)
                    turns += 1
                assert not call.done()
            assert (await call).node == "b"
            assert turns == 20

    asyncio.run(main())


def test_a_cancelled_task_gives_its_pull_up(over_tcp: Cluster) -> None:
    async def main() -> None:
        namespace = publish(over_tcp.a, a_namespace())
        over_tcp.b.register_pool(namespace)
        async with await kvferry.aio.connect(over_tcp.agent_b.socket) as b:
            with stopped(over_tcp.agent_a):
                pull = b.pull(namespace, KEYS, timeout=60)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(pull, 0.2)
                deadline = time.monotonic() + 60
                while not pull.done():
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)
                with pytest.raises(kvferry.CancelledError):
                    await pull

    asyncio.run(main())


def test_a_failure_reaches_whoever_awaits(over_tcp: Cluster) -> None:
    async def main() -> None:
        async with await kvferry.aio.connect(over_tcp.agent_b.socket, call_timeout=3) as b:
            with stopped(over_tcp.agent_b), pytest.raises(kvferry.DeadlineError):
                await b.stats()

    asyncio.run(main())
