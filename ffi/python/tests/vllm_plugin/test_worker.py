"""The worker's half with real agents and vLLM's own classes; only the engine is missing."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="a KV cache is tensors")
pytest.importorskip("vllm", reason="vLLM is not installed: tests/engines/README.md says how it is")

import kvferry
from kvferry import Agent
from kvferry.vllm import in_place
from kvferry.vllm.identity import Group, Identity
from kvferry.vllm.metadata import GroupBlocks, LoadOrder, SaveOrder, StepOrders
from kvferry.vllm.settings import Settings
from kvferry.vllm.stats import KvferryStats, of_within_step
from kvferry.vllm.worker import WorkerHalf

LAYERS, BLOCKS = 2, 640
NAMES = [f"layer.{i}" for i in range(LAYERS)]


def identity(name: str, tp: int = 1) -> Identity:
    return Identity(
        description={"test": name, "cache_dtype": "auto", "dtype": "int8"},
        model="m",
        tenant="worker",
        hash_len=32,
        hash_tokens=16,
        groups=(Group(0, 16, 1),),
        tp=tp,
        pp=1,
    )


def a_worker(client: kvferry.Client, name: str, page: int = 32 << 10, **settings: Any) -> tuple[WorkerHalf, torch.Tensor]:
    """With a KV cache of 40 MiB unless `page` says otherwise."""
    half = WorkerHalf(identity(name), Settings(socket=client.socket, **settings), 0, 0, BLOCKS)
    cache = torch.zeros((LAYERS, BLOCKS, page), dtype=torch.int8)
    half.register({layer: cache[i] for i, layer in enumerate(NAMES)}, {0: NAMES})
    return half, cache


def group(blocks: tuple[int, ...], *numbers: int) -> GroupBlocks:
    return GroupBlocks(0, blocks, tuple(number.to_bytes(32, "big") for number in numbers))


def compute(half: WorkerHalf, cache: torch.Tensor, block: int, number: int) -> None:
    """A step in which that block is computed."""
    orders = StepOrders(saves=[SaveOrder("r", (group((block,), number),))], writes={0: {block}})
    half.before_forward(orders)
    half.start_loads(orders)
    cache[:, block] = number
    half.publish(orders)


def load(half: WorkerHalf, blocks: GroupBlocks) -> tuple[set[str], set[str], set[int]]:
    """Steps until the load has ended."""
    orders = StepOrders(loads=[LoadOrder("q", (blocks,))], idle=True)
    half.before_forward(orders)
    half.start_loads(orders)
    deadline = time.monotonic() + 15.0
    while time.monotonic() < deadline:
        ended, failed = half.ended(idle=True)
        if ended:
            return ended, failed, half.bad_blocks()
    raise AssertionError("a load that never ends")


def listed(client: kvferry.Client, name: str, number: int) -> bool:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        (place,) = client.lookup(identity(name).namespace(0, 0, 0), [number.to_bytes(32, "big")])
        if place in (kvferry.Place.LOCAL, kvferry.Place.REMOTE):
            return True
        time.sleep(0.01)
    return False


def test_within_a_step_a_layer_is_waited_for_and_no_later_one(gated: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(in_place, "STAGE_BYTES", 1)
    ours, cache = a_worker(gated.a, "layers", memory="in_place")
    theirs, other = a_worker(gated.b, "layers", memory="in_place", load="sync")
    for block in (1, 2, 3):
        compute(ours, cache, block, block)
        assert listed(gated.b, "layers", block)
    other[:] = 99
    first = StepOrders(loads=[LoadOrder("first", (group((7,), 3),), within_step=True)])
    theirs.before_forward(first)
    theirs.start_loads(first)
    theirs.publish(first)
    assert bool((other[:, 7] == 3).all()), "so that there is a link"
    # A layer of two blocks, and not all of the next; the third block is nowhere.
    gated.gate.allow(2 * (32 << 10) * 1.5)
    orders = StepOrders(loads=[LoadOrder("q", (group((4, 5, 6), 1, 2, 77),), within_step=True)])
    theirs.before_forward(orders)
    theirs.start_loads(orders)
    theirs.wait_for_layer(NAMES[0])
    assert bool((other[0, 4] == 1).all()) and bool((other[0, 5] == 2).all())
    assert not bool((other[1, 5] == 2).all()), "still under way"
    gated.gate.allow(math.inf)
    theirs.wait_for_layer(NAMES[1])
    assert bool((other[1, 4] == 1).all()) and bool((other[1, 5] == 2).all())
    theirs.publish(orders)
    assert theirs.bad_blocks() == {6}
    ours.close()
    theirs.close()


@pytest.mark.parametrize("memory", ["pool", "in_place"])
def test_what_does_not_come_within_a_step_is_said_with_the_step(cluster: Any, memory: str) -> None:
    name = f"within/{memory}"
    half, _ = a_worker(cluster.a, name, memory=memory, load="sync")
    orders = StepOrders(loads=[LoadOrder("q", (group((4, 6), 1, 77),), within_step=True)])
    half.before_forward(orders)
    half.start_loads(orders)
    for layer in NAMES:
        half.wait_for_layer(layer)
    # With speculation vLLM asks for it while drafts are still to be computed, and for the rest afterwards.
    assert half.bad_blocks() == {4, 6}
    stats = half.take_stats()
    assert stats is not None and of_within_step(stats) and stats.data["failed_blocks"] == 2
    half.wait_for_layer(NAMES[0])
    half.publish(orders)
    assert half.bad_blocks() == set() and not of_within_step(half.take_stats())
    half.close()


@pytest.mark.parametrize("memory", ["pool", "in_place"])
def test_from_one_workers_step_to_another_ones(cluster: Any, memory: str) -> None:
    name = f"step/{memory}"
    ours, cache = a_worker(cluster.a, name, memory=memory)
    theirs, other = a_worker(cluster.b, name, memory=memory)
    compute(ours, cache, 5, 17)
    assert listed(cluster.b, name, 17)
    ended, failed, bad = load(theirs, group((9,), 17))
    assert (ended, failed, bad) == ({"q"}, set(), set())
    assert bool((other[:, 9] == 17).all()) and not other[:, 8].any()
    ended, failed, bad = load(theirs, group((9, 10), 17, 18))
    assert (ended, failed, bad) == ({"q"}, {"q"}, {10})
    stats = theirs.take_stats()
    assert stats is not None and theirs.take_stats() is None
    assert stats.data["load_blocks"] == 2 and stats.data["failures"] == {"missing": 1} and stats.data["loads"] == 2
    said = stats.aggregate(KvferryStats(data={"load_blocks": 1, "failures": {"missing": 2}})).reduce()
    assert said["load_blocks"] == 3 and said["failed_missing"] == 3
    ours.close()
    theirs.close()


def test_another_layout_under_the_same_name_does_not_start(cluster: Any) -> None:
    first, _ = a_worker(cluster.a, "layout", memory="pool")
    with pytest.raises(kvferry.NamespaceMismatchError, match="layout"):
        a_worker(cluster.b, "layout", page=16 << 10, memory="pool")
    first.close()


def test_small_host_memory_goes_through_the_pool_unless_told_otherwise(cluster: Any) -> None:
    half, _ = a_worker(cluster.a, "small", page=1000)
    assert half._storage is None
    half.close()
    with pytest.raises(kvferry.NotShareableError):
        a_worker(cluster.a, "small-in-place", page=1000, memory="in_place")


@pytest.mark.parametrize("memory", ["pool", "in_place"])
def test_an_agent_that_goes_and_comes_back_costs_hits_only(cluster: Any, tmp_path: Any, memory: str) -> None:
    name, socket = f"again/{memory}", str(tmp_path / "agent.sock")
    options = {"coordinators": [cluster.coordinator.url], "pool_bytes": "8MiB", "socket": socket}
    agent = Agent(node=f"c-{memory}", **options)
    with agent.connect() as client:
        half, cache = a_worker(client, name, memory=memory, reconnect_s=0.05)
    compute(half, cache, 1, 1)
    agent.stop()
    compute(half, cache, 2, 2)
    assert half.link.session is None, "lost with the first call that failed"
    assert load(half, group((3,), 1)) == ({"q"}, {"q"}, {3})
    with Agent(node=f"c-{memory}", **options):
        deadline = time.monotonic() + 10.0
        while half.link.session is None and time.monotonic() < deadline:
            time.sleep(0.01)
        compute(half, cache, 4, 4)
        assert listed(cluster.a, name, 4)
        half.close()
