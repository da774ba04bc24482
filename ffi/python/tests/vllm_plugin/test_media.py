"""Both ways to share an engine's KV cache, with real tensors and real agents; only the engine is missing."""

from __future__ import annotations

import math
import os
import signal
from typing import Any
from unittest.mock import ANY

import pytest

torch = pytest.importorskip("torch", reason="a KV cache is tensors")

import kvferry
from kvferry import Layout, Namespace
from kvferry.vllm import in_place
from kvferry.vllm.in_place import InPlaceMedium, whole_storage
from kvferry.vllm.medium import Medium
from kvferry.vllm.metadata import GroupBlocks
from kvferry.vllm.planes import parts_of
from kvferry.vllm.pool import PoolMedium

LAYERS, BLOCKS, PAGE = 4, 640, 16 << 10
WAYS = ("pool", "in_place")


class Cache:
    """An engine's KV cache of 40 MiB, as vLLM allocates it: layers in one storage, each [blocks, heads, tokens, 2 x head]."""

    def __init__(
        self, client: kvferry.Client, namespace: Namespace, way: str, seed: int, *, by_layer: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        flat = torch.randint(0, 127, (LAYERS * BLOCKS * PAGE,), dtype=torch.int8, generator=generator)
        self.layers = {f"layer.{i}": flat.view(LAYERS, BLOCKS, 2, 64, 128)[i] for i in range(LAYERS)}
        self.parts = parts_of(self.layers.items(), BLOCKS)
        self.medium: Medium
        if way == "pool":
            self.medium = PoolMedium(client, namespace, self.parts, 8 << 20)
        else:
            self.medium = InPlaceMedium(
                client, namespace, self.parts, whole_storage(self.parts, flat), by_layer=by_layer
            )

    def block(self, number: int) -> bytes:
        return b"".join(layer[number].numpy().tobytes() for layer in self.layers.values())

    def write(self, number: int, value: int) -> None:
        for layer in self.layers.values():
            layer[number] = value


def a_namespace(name: str) -> Namespace:
    return Namespace(f"media/{name}", Layout("i8", 64, LAYERS, PAGE), 32)


def hashes(*numbers: int) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(32, "big") for number in numbers)


def group(blocks: tuple[int, ...], *numbers: int) -> GroupBlocks:
    return GroupBlocks(0, blocks, hashes(*numbers))


def published(client: kvferry.Client, namespace: Namespace, *numbers: int) -> bool:
    """Whether a coordinator lists all of them, within two seconds."""
    import time

    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        places = client.lookup(namespace, hashes(*numbers))
        if all(place in (kvferry.Place.LOCAL, kvferry.Place.REMOTE) for place in places):
            return True
        time.sleep(0.01)
    return False


def load(cache: Cache, blocks: GroupBlocks, timeout_s: float = 10.0) -> tuple[frozenset[int], Any]:
    under_way = cache.medium.load(blocks, timeout_s)
    assert under_way.wait(timeout_s + 3.0)
    return under_way.finish(), under_way.moved


@pytest.mark.parametrize("source", WAYS)
@pytest.mark.parametrize("target", WAYS)
def test_a_block_is_the_same_bytes_on_both_sides(cluster: Any, source: str, target: str) -> None:
    space = a_namespace(f"same/{source}/{target}")
    ours, theirs = Cache(cluster.a, space, source, 1), Cache(cluster.b, space, target, 2)
    ours.medium.before_writes({5, 9})
    ours.write(5, 55)
    ours.write(9, 99)
    moved = ours.medium.publish(group((5, 9), 1, 2), pin_s=None)
    assert moved.blocks == 2 and moved.nbytes == 2 * LAYERS * PAGE
    assert published(cluster.b, space, 1, 2)
    before = theirs.block(8)
    bad, came = load(theirs, group((7, 3), 1, 2))
    assert not bad and came.blocks == 2
    assert theirs.block(7) == ours.block(5) and theirs.block(3) == ours.block(9)
    assert theirs.block(8) == before, "nothing else was written to"


@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_has_is_named_and_what_came_is_kept(cluster: Any, way: str) -> None:
    space = a_namespace(f"partly/{way}")
    ours, theirs = Cache(cluster.a, space, way, 1), Cache(cluster.b, space, way, 2)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    bad, came = load(theirs, group((4, 6), 1, 77))
    assert bad == {6} and came.failures == {"missing": 1}
    assert theirs.block(4) == ours.block(1)


def test_in_place_a_block_that_is_written_anew_is_nobodys_before_it_is(cluster: Any) -> None:
    space = a_namespace("anew")
    ours, theirs = Cache(cluster.a, space, "in_place", 1), Cache(cluster.b, space, "in_place", 2)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    ours.medium.before_writes({1})
    # A reader that still holds the old hint gets nothing.
    bad, came = load(theirs, group((2,), 1))
    assert bad == {2} and set(came.failures) <= {"missing", "stale"}
    ours.write(1, 3)
    ours.medium.publish(group((1,), 2), pin_s=None)
    assert published(cluster.b, space, 2)
    bad, _ = load(theirs, group((2,), 2))
    assert not bad and theirs.block(2) == ours.block(1)


def test_in_place_what_was_loaded_is_published_in_turn_until_it_is_written_to(cluster: Any) -> None:
    space = a_namespace("replica")
    ours, theirs = Cache(cluster.a, space, "in_place", 1), Cache(cluster.b, space, "in_place", 2)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    # The reader had begun to write to the slot before: its reservation is no obstacle.
    theirs.medium.before_writes({2})
    assert not load(theirs, group((2,), 1))[0]
    assert cluster.b.lookup(space, hashes(1)) == [kvferry.Place.LOCAL]
    theirs.medium.before_writes({2})
    ours.medium.before_writes({1})
    bad, _ = load(theirs, group((3,), 1))
    assert bad == {3}


def test_in_place_a_slot_that_is_pinned_is_waited_for(cluster: Any) -> None:
    space = a_namespace("pinned")
    ours = Cache(cluster.a, space, "in_place", 1)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    cluster.a.pin(space, hashes(1), ttl=0.5)
    ours.medium.before_writes({1})
    assert cluster.a.lookup(space, hashes(1)) == [kvferry.Place.MISSING]


class Kernel:
    """What writes to a GPU's blocks, and is not done before the test says so."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def test_in_place_what_could_not_be_sealed_does_not_keep_a_block_from_being_taken_back(
    cluster: Any, monkeypatch: Any
) -> None:
    space = a_namespace("unsealed")
    ours = Cache(cluster.a, space, "in_place", 1)
    ours.medium.before_writes({1, 2})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    kernel = Kernel()
    monkeypatch.setattr(ours.medium, "_written", lambda: kernel)
    ours.medium.publish(group((2,), 2), pin_s=None)
    kernel.done = True

    def late(*_: Any, **__: Any) -> None:
        raise kvferry.DeadlineError("the agent has not answered")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.a, "seal", late)
        with pytest.raises(kvferry.DeadlineError):
            ours.medium.before_writes({1})
    assert cluster.a.lookup(space, hashes(1)) == [kvferry.Place.MISSING], "it is written to now"


def test_in_place_a_block_that_is_loaded_into_is_not_sealed_as_what_it_was(cluster: Any, monkeypatch: Any) -> None:
    space = a_namespace("reused")
    ours, theirs = Cache(cluster.a, space, "in_place", 1), Cache(cluster.b, space, "in_place", 2)
    theirs.medium.before_writes({5})
    theirs.medium.publish(group((5,), 5), pin_s=None)
    assert published(cluster.a, space, 5)
    kernel = Kernel()
    monkeypatch.setattr(ours.medium, "_written", lambda: kernel)
    ours.medium.before_writes({1, 2})
    ours.medium.publish(group((1, 2), 1, 2), pin_s=None)
    # Its request is gone, and another one's block comes there.
    assert not load(ours, group((1,), 5))[0]
    kernel.done = True
    ours.medium.before_writes({3})
    assert ours.block(1) == theirs.block(5)
    local, missing = kvferry.Place.LOCAL, kvferry.Place.MISSING
    assert cluster.a.lookup(space, hashes(1, 2, 5)) == [missing, local, local]


def test_a_pool_without_room_drops_what_it_cannot_take(cluster: Any) -> None:
    space = a_namespace("full")
    ours = Cache(cluster.a, space, "pool", 1)
    pool = cluster.a.register_pool(space)
    with pool.write(pool.slots - 1):
        moved = ours.medium.publish(group((1, 2), 1, 2), pin_s=None)
        assert (moved.blocks, moved.dropped) == (0, 2)
    assert ours.medium.publish(group((1, 2), 1, 2), pin_s=None).blocks == 2


def test_layer_by_layer_each_layer_is_there_when_it_was_waited_for(cluster: Any) -> None:
    space = a_namespace("layers")
    ours, theirs = Cache(cluster.a, space, "pool", 1), Cache(cluster.b, space, "pool", 2)
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    last = theirs.layers["layer.3"][2].clone()
    under_way = theirs.medium.load(group((2,), 1), 10.0)
    under_way.layer("layer.0")
    assert torch.equal(theirs.layers["layer.0"][2], ours.layers["layer.0"][1])
    assert torch.equal(theirs.layers["layer.3"][2], last), "not yet"
    assert not under_way.finish()
    assert theirs.block(2) == ours.block(1)


def test_in_place_a_layer_is_there_while_later_ones_are_under_way(gated: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(in_place, "STAGE_BYTES", 1)
    space = a_namespace("staged")
    ours = Cache(gated.a, space, "in_place", 1)
    theirs = Cache(gated.b, space, "in_place", 2, by_layer=True)
    ours.medium.before_writes({1, 3, 5})
    ours.medium.publish(group((1, 3, 5), 1, 2, 3), pin_s=None)
    assert published(gated.b, space, 1, 2, 3)
    # So that there is a link; then a layer of two blocks comes through, and not all of the next.
    assert load(theirs, group((9,), 3)) == (frozenset(), ANY)
    gated.gate.allow(2 * PAGE * 1.5)
    under_way = theirs.medium.load(group((2, 4), 1, 2), 10.0)
    under_way.layer("layer.0")
    for mine, other in ((1, 2), (3, 4)):
        assert torch.equal(theirs.layers["layer.0"][other], ours.layers["layer.0"][mine])
        assert not torch.equal(theirs.layers["layer.2"][other], ours.layers["layer.2"][mine])
    assert not under_way.done()
    gated.gate.allow(math.inf)
    under_way.layer("layer.1")
    assert torch.equal(theirs.layers["layer.1"][4], ours.layers["layer.1"][3])
    under_way.layer("a layer that shares another one's memory")
    assert under_way.done() and not under_way.finish()
    assert theirs.block(2) == ours.block(1) and theirs.block(4) == ours.block(3)


def test_in_place_a_layer_waits_for_no_block_that_does_not_come(gated: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(in_place, "STAGE_BYTES", 1)
    space = a_namespace("staged/missing")
    ours = Cache(gated.a, space, "in_place", 1)
    theirs = Cache(gated.b, space, "in_place", 2, by_layer=True)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(gated.b, space, 1)
    under_way = theirs.medium.load(group((2, 4), 1, 77), 10.0)
    under_way.layer("layer.0")
    assert torch.equal(theirs.layers["layer.0"][2], ours.layers["layer.0"][1])
    under_way.layer("layer.3")
    assert under_way.wait(10.0) and under_way.finish() == {4}
    assert under_way.moved.failures == {"missing": 1}


@pytest.mark.parametrize("way", WAYS)
def test_a_load_from_an_owner_that_stands_still_ends_by_its_deadline(over_tcp: Any, way: str) -> None:
    space = a_namespace(f"still/{way}")
    ours, theirs = Cache(over_tcp.a, space, way, 1), Cache(over_tcp.b, space, way, 2)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(over_tcp.b, space, 1)
    os.kill(over_tcp.agent_a.pid, signal.SIGSTOP)
    try:
        bad, came = load(theirs, group((2,), 1), timeout_s=0.5)
    finally:
        os.kill(over_tcp.agent_a.pid, signal.SIGCONT)
    assert bad == {2} and sum(came.failures.values()) == 1
    # And the block may be computed into.
    theirs.medium.before_writes({2})
    theirs.write(2, 1)


def test_a_block_whose_pin_is_over_is_computed(cluster: Any) -> None:
    space = a_namespace("over")
    ours, theirs = Cache(cluster.a, space, "pool", 1), Cache(cluster.b, space, "pool", 2)
    ours.medium.publish(group((1,), 1), pin_s=None)
    assert published(cluster.b, space, 1)
    under_way = theirs.medium.load(group((2,), 1), 10.0)
    assert under_way.wait(10.0)
    pin = under_way._pull.result().pin  # type: ignore[attr-defined]
    assert pin is not None
    pin.release()
    assert under_way.finish() == {2}


def test_a_block_in_the_memory_of_another_engine_beside_the_agent_is_computed(cluster: Any) -> None:
    space = a_namespace("beside")
    ours, theirs = Cache(cluster.a, space, "in_place", 1), Cache(cluster.a, space, "pool", 2)
    ours.medium.before_writes({1})
    ours.medium.publish(group((1,), 1), pin_s=None)
    bad, came = load(theirs, group((2,), 1))
    assert bad == {2} and sum(came.failures.values()) == 1
    # Its pin is over, so the owner goes on at once.
    ours.medium.before_writes({1})
