"""Evictions of vLLM's primary tier, with vLLM's own manager: nothing is overwritten that somebody may still take for a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: tests/engines/README.md says how it is")

from kvferry.vllm import compat
from kvferry.vllm.policy import KvferryPolicy
from kvferry.vllm.tier_slots import Slots
from vllm.v1.kv_offload.base import ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

from .standin import StubSlots

CHUNKS = 4


class Rig:
    """A primary tier of four chunks, and the slots of a tier that has claimed its policy."""

    def __init__(self) -> None:
        size = "num_chunks" if "num_chunks" in CPUOffloadingManager.__init__.__code__.co_varnames else "num_blocks"
        self.primary = CPUOffloadingManager(
            **{size: CHUNKS}, cache_policy="KvferryPolicy", cache_policy_module_path="kvferry.vllm"
        )
        self.agent = StubSlots()
        self.slots = Slots(self.agent, None)  # type: ignore[arg-type]
        assert KvferryPolicy.claim(CHUNKS, self)
        self.context = ReqContext(req_id="r")
        self.primary.on_new_request(self.context)

    def withdraw(self, chunks: Sequence[int]) -> set[int]:
        return self.slots.withdraw(chunks)

    def store(self, *numbers: int) -> list[int] | None:
        """Puts chunks in, and publishes them as the tier does; where they lie, or None where there is no room."""
        keys = [key(number) for number in numbers]
        context = ReqContext(req_id=f"store {numbers}")
        self.primary.on_new_request(context)
        got = self.primary.prepare_store(keys, context)
        if got is None:
            return None
        places = [int(chunk) for chunk in getattr(got.store_spec, "chunk_ids", getattr(got.store_spec, "block_ids", ()))]
        # vLLM's worker writes to them now: none of them may be published.
        assert not set(places) & set(self.agent.sealed), "a published chunk is overwritten"
        self.primary.complete_store(keys, context)
        self.slots.publish(places, keys)
        return places

    def held(self) -> set[bytes]:
        return set(self.agent.sealed.values())


def key(number: int) -> Any:
    return make_offload_key(number.to_bytes(32, "big"), 0)


def test_an_evicted_chunk_is_withdrawn_before_its_memory_is_used() -> None:
    rig = Rig()
    rig.store(1, 2, 3, 4)
    assert rig.held() == {key(n) for n in (1, 2, 3, 4)}
    assert rig.store(5) is not None
    assert key(5) in rig.held() and len(rig.held()) == CHUNKS


def test_many_rounds_and_nothing_published_is_ever_overwritten() -> None:
    rig = Rig()
    for number in range(0, 60, 2):
        assert rig.store(number, number + 1) is not None
    assert rig.held() == {key(n) for n in (56, 57, 58, 59)}


def test_a_chunk_that_a_reader_has_pinned_stays_and_another_goes() -> None:
    rig = Rig()
    places = rig.store(1, 2, 3, 4)
    assert places is not None
    where = dict(zip((1, 2, 3, 4), places))
    rig.agent.busy = {where[1], where[2]}
    assert rig.store(5, 6) is not None
    assert {key(1), key(2), key(5), key(6)} == rig.held()
    rig.agent.busy = set()
    assert rig.store(7) is not None


def test_where_all_are_pinned_nothing_is_stored_and_nothing_lost() -> None:
    rig = Rig()
    places = rig.store(1, 2, 3, 4)
    assert places is not None
    rig.agent.busy = set(places[1:])
    assert rig.store(5, 6) is None
    # One was withdrawn for it, and is still in the cache: for this engine alone.
    there = [rig.primary._policy.get(key(n)) is not None for n in (1, 2, 3, 4)]
    assert all(there) and len(rig.held()) == 3
    rig.agent.busy = set()
    assert rig.store(5, 6) is not None


def test_a_reset_withdraws_everything() -> None:
    rig = Rig()
    rig.store(1, 2, 3)
    rig.primary.reset_cache()
    assert not rig.held()


def test_a_tier_claims_the_policy_made_for_its_region_only() -> None:
    made = KvferryPolicy(cache_capacity=17)
    assert not KvferryPolicy.claim(18, Rig())
    del made
    assert not KvferryPolicy.claim(17, Rig())


def test_this_release_has_what_the_policy_is_built_on() -> None:
    from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy

    names = ("evict", "remove", "clear", "insert", "get")
    assert not compat.missing([(LRUCachePolicy, name) for name in names])
