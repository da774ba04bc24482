"""The scheduler's half, given vLLM's own requests, block tables and scheduler outputs."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: tests/engines/README.md says how it is")

from kvferry import Place
from kvferry.vllm.identity import Group, Identity
from kvferry.vllm.metadata import GroupBlocks, LoadOrder
from kvferry.vllm.scheduler import SchedulerHalf
from kvferry.vllm.settings import Settings
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.request import Request

from .standin import StubCall

BLOCK = 16


class StubClient:
    """Answers look-ups as the test says."""

    def __init__(self) -> None:
        self.background = self
        self.calls: list[tuple[str, list[bytes], StubCall]] = []
        self.prefixes: list[bool] = []

    def lookup(self, namespace: str, hashes: Any, *, prefix: bool, timeout: float) -> StubCall:
        assert timeout > 0
        self.prefixes.append(prefix)
        self.calls.append((namespace, list(hashes), StubCall()))
        return self.calls[-1][2]


class StubLink:
    def __init__(self, client: StubClient) -> None:
        self.session: StubClient | None = client

    def failed(self, error: BaseException, session: Any) -> None:
        raise AssertionError(error)


class Rig:
    def __init__(
        self,
        produces: bool = True,
        consumes: bool = True,
        groups: int = 1,
        tp: int = 1,
        window: int | None = None,
        **settings: Any,
    ) -> None:
        init_none_hash(sha256)
        self.now = 0.0
        self.client = StubClient()
        self.link = StubLink(self.client)
        identity = Identity(
            description={"model": "m"},
            model="m",
            tenant="t",
            hash_len=32,
            hash_tokens=BLOCK,
            # The last of several has the window.
            groups=tuple(
                Group(index, BLOCK * (index + 1), index + 1, window if index == groups - 1 else None) for index in range(groups)
            ),
            tp=tp,
            pp=1,
        )
        self.identity = identity
        self.half = SchedulerHalf(
            identity,
            Settings(**settings),
            self.link,  # type: ignore[arg-type]
            produces=produces,
            consumes=consumes,
            clock=lambda: self.now,
        )

    def answer(self, *places: Place) -> None:
        for _, _, call in self.client.calls:
            if not call.done():
                call.give(list(places))


def request(name: str, tokens: int, params: dict[str, Any] | None = None) -> Request:
    sampling = SamplingParams(max_tokens=4, extra_args={"kv_transfer_params": params} if params else None)
    return Request(
        request_id=name,
        prompt_token_ids=list(range(tokens)),
        sampling_params=sampling,
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


def blocks(*ids: list[int]) -> KVCacheBlocks:
    return KVCacheBlocks(tuple([KVCacheBlock(block_id=block) for block in group] for group in ids))


def new(req: Request, ids: tuple[list[int], ...], computed: int) -> NewRequestData:
    return NewRequestData(
        req_id=req.request_id,
        prompt_token_ids=req.prompt_token_ids,
        mm_features=[],
        sampling_params=req.sampling_params,
        pooling_params=None,
        block_ids=ids,
        num_computed_tokens=computed,
        lora_request=None,
    )


def output(
    scheduled: dict[str, int], fresh: tuple[NewRequestData, ...] = (), cached: tuple[tuple[str, Any, int], ...] = ()
) -> SchedulerOutput:
    out = SchedulerOutput.make_empty()
    out.scheduled_new_reqs = list(fresh)
    data = CachedRequestData.make_empty()
    for name, ids, computed in cached:
        data.req_ids.append(name)
        data.new_block_ids.append(ids)
        data.num_computed_tokens.append(computed)
    out.scheduled_cached_reqs = data
    out.num_scheduled_tokens = scheduled
    out.total_num_scheduled_tokens = sum(scheduled.values())
    return out


THERE, NO = Place.REMOTE, Place.MISSING


def test_a_hit_is_loaded_between_steps_and_the_last_token_is_always_computed() -> None:
    rig, req = Rig(), request("r", 4 * BLOCK)
    assert rig.half.matched_tokens(req, 0) == (None, False)
    (namespace, hashes, _) = rig.client.calls[0]
    assert namespace == rig.identity.namespace(0, 0, 0)
    assert hashes == [bytes(h) for h in req.block_hashes[:3]], "not the last block, though it is full"
    rig.answer(THERE, THERE, THERE)
    assert rig.half.matched_tokens(req, 0) == (3 * BLOCK, True)
    rig.half.allocated(req, blocks([7, 8, 9]), 3 * BLOCK)
    orders = rig.half.step(output({}))
    assert orders.idle and orders.loads == [LoadOrder("r", (GroupBlocks(0, (7, 8, 9), tuple(hashes), None),))]
    assert not rig.half.step(output({})).loads, "once"


def test_what_the_engine_has_itself_is_not_asked_for() -> None:
    rig, req = Rig(), request("r", 5 * BLOCK + 3)
    rig.half.matched_tokens(req, 2 * BLOCK)
    assert rig.client.calls[0][1] == [bytes(h) for h in req.block_hashes[2:5]]
    rig.answer(THERE, THERE, NO)
    assert rig.half.matched_tokens(req, 2 * BLOCK) == (2 * BLOCK, True)
    rig.half.allocated(req, blocks([1, 2, 3, 4, 5, 6]), 2 * BLOCK)
    (load,) = rig.half.step(output({})).loads
    (group,) = load.groups
    assert group.blocks == (3, 4) and group.parent == bytes(req.block_hashes[1])


def test_short_prompts_and_producers_ask_nothing() -> None:
    rig = Rig()
    assert rig.half.matched_tokens(request("short", BLOCK), 0) == (0, False)
    assert rig.half.matched_tokens(request("known", 3 * BLOCK), 2 * BLOCK) == (0, False)
    producer = Rig(consumes=False)
    assert producer.half.matched_tokens(request("r", 4 * BLOCK), 0) == (0, False)
    assert not rig.client.calls and not producer.client.calls


def test_a_look_up_without_answer_is_a_miss_by_its_deadline() -> None:
    rig, req = Rig(lookup_timeout_s=1.0), request("r", 4 * BLOCK)
    assert rig.half.matched_tokens(req, 0) == (None, False)
    rig.now = 0.99
    assert rig.half.matched_tokens(req, 0) == (None, False)
    rig.now = 1.0
    assert rig.half.matched_tokens(req, 0) == (0, False)


def test_full_blocks_are_published_as_they_become_it() -> None:
    rig, req = Rig(), request("r", 3 * BLOCK + 4)
    rig.half.allocated(req, blocks([5, 6, 7, 8]), 0)
    orders = rig.half.step(output({"r": 2 * BLOCK + 5}, fresh=(new(req, ([5, 6, 7, 8],), 0),)))
    (save,) = orders.saves
    assert save.groups == (GroupBlocks(0, (5, 6), tuple(bytes(h) for h in req.block_hashes[:2]), None),)
    assert orders.writes == {0: {5, 6, 7, 8}}
    orders = rig.half.step(output({"r": BLOCK - 1}, cached=(("r", None, 2 * BLOCK + 5),)))
    (save,) = orders.saves
    assert save.groups[0].blocks == (7,) and save.groups[0].parent == bytes(req.block_hashes[1])
    assert orders.writes == {0: {7, 8}}, "what is complete is not written to any more"
    # Decoding: the fourth block is full when its hash is known.
    req.append_output_token_ids(list(range(BLOCK)))
    orders = rig.half.step(output({"r": BLOCK}, cached=(("r", ([9],), 3 * BLOCK + 4),)))
    assert [save.groups[0].blocks for save in orders.saves] == [(8,)]
    assert orders.writes == {0: {8, 9}}


def test_only_the_prompt_where_that_is_asked_for() -> None:
    rig, req = Rig(publish="prompt"), request("r", BLOCK + 1)
    rig.half.allocated(req, blocks([1, 2]), 0)
    assert rig.half.step(output({"r": BLOCK + 1}, fresh=(new(req, ([1, 2],), 0),))).saves
    req.append_output_token_ids(list(range(BLOCK)))
    assert not rig.half.step(output({"r": BLOCK}, cached=(("r", None, BLOCK + 1),))).saves


def test_a_consumer_publishes_nothing_but_says_what_it_writes() -> None:
    rig, req = Rig(produces=False), request("r", BLOCK)
    rig.half.allocated(req, blocks([1]), 0)
    orders = rig.half.step(output({"r": BLOCK}, fresh=(new(req, ([1],), 0),)))
    assert not orders.saves and orders.writes == {0: {1}}


def test_what_was_loaded_is_not_published_again_and_what_failed_is_computed_and_not_asked_for_again() -> None:
    rig, req = Rig(), request("r", 4 * BLOCK)
    rig.half.matched_tokens(req, 0)
    rig.answer(THERE, THERE, THERE)
    rig.half.matched_tokens(req, 0)
    rig.half.allocated(req, blocks([1, 2, 3]), 3 * BLOCK)
    rig.half.step(output({}))
    rig.half.worker_said({"r"}, (), {2})
    # vLLM counts one block as computed, and schedules the rest.
    rig.half.allocated(req, blocks([1, 2, 3, 4]), 0)
    orders = rig.half.step(output({"r": 3 * BLOCK}, fresh=(new(req, ([1, 2, 3, 4],), BLOCK),)))
    assert orders.saves[0].groups[0].blocks == (2, 3, 4)
    assert orders.writes == {0: {2, 3, 4}}, "the third came, and is computed over"
    asked = len(rig.client.calls)
    assert rig.half.matched_tokens(req, 0) == (0, False) and len(rig.client.calls) == asked


def a_load_within_a_step(rig: Rig) -> tuple[Request, SchedulerOutput]:
    """A request of five blocks whose first two come within the step that computes the others."""
    req = request("r", 5 * BLOCK)
    rig.half.matched_tokens(req, 0)
    rig.answer(THERE, THERE, NO, NO)
    assert rig.half.matched_tokens(req, 0) == (2 * BLOCK, False)
    rig.half.allocated(req, blocks([1, 2, 3, 4, 5]), 2 * BLOCK)
    return req, output({"r": 2 * BLOCK}, fresh=(new(req, ([1, 2, 3, 4, 5],), 2 * BLOCK),))


def saved(rig: Rig, out: SchedulerOutput) -> dict[str, tuple[int, ...]]:
    return {save.request: save.groups[0].blocks for save in rig.half.step(out).saves}


def test_what_rests_on_blocks_that_come_within_a_step_is_published_when_they_are_known_to_have_come() -> None:
    rig = Rig(load="sync")
    _, out = a_load_within_a_step(rig)
    # Two more in the same step: one shares the blocks that are to come, one does not.
    sharer, other = request("s", 3 * BLOCK + 1), request("o", BLOCK + 1)
    rig.half.allocated(sharer, blocks([1, 2, 6, 7]), 0)
    rig.half.allocated(other, blocks([8, 9]), 0)
    out.scheduled_new_reqs += [new(sharer, ([1, 2, 6, 7],), 2 * BLOCK), new(other, ([8, 9],), 0)]
    out.num_scheduled_tokens |= {"s": BLOCK + 1, "o": BLOCK + 1}
    orders = rig.half.step(out)
    assert orders.loads[0].within_step and orders.writes == {0: {3, 4, 5, 6, 7, 8, 9}}
    assert [save.request for save in orders.saves] == ["o"]
    # A step that was scheduled before the first one's outcome was there.
    assert saved(rig, output({"r": BLOCK}, cached=(("r", None, 4 * BLOCK),))) == {}
    rig.half.worker_said((), (), ())
    assert saved(rig, output({"s": 1}, cached=(("s", None, 3 * BLOCK + 1),))) == {}, "of an earlier step"
    rig.half.worker_said((), (), (), within_step=True)
    both = output({"r": 1, "s": 1}, cached=(("r", None, 5 * BLOCK), ("s", None, 3 * BLOCK + 1)))
    assert saved(rig, both) == {"r": (3, 4, 5), "s": (6,)}
    assert not rig.half._unknown


def test_what_was_computed_on_blocks_that_did_not_come_within_a_step_is_published_when_it_is_computed_anew() -> None:
    rig = Rig(load="sync")
    _, out = a_load_within_a_step(rig)
    assert saved(rig, out) == {}
    rig.half.worker_said((), (), {2}, within_step=True)
    # vLLM counts one block as computed.
    assert saved(rig, output({"r": 2 * BLOCK}, cached=(("r", None, BLOCK),))) == {"r": (2, 3)}
    assert saved(rig, output({"r": 2 * BLOCK}, cached=(("r", None, 3 * BLOCK),))) == {"r": (4, 5)}


def test_a_prefill_for_another_engine_loads_between_steps_so_that_what_it_computes_is_published_with_them() -> None:
    rig, req = Rig(load="sync"), request("p", 3 * BLOCK, {"do_remote_decode": True})
    rig.half.matched_tokens(req, 0)
    rig.answer(THERE, NO)
    assert rig.half.matched_tokens(req, 0) == (BLOCK, True)
    rig.half.allocated(req, blocks([1]), BLOCK)
    assert [load.within_step for load in rig.half.step(output({})).loads] == [False]
    rig.half.worker_said({"p"}, (), ())
    rig.half.allocated(req, blocks([1, 2, 3]), 0)
    assert saved(rig, output({"p": 2 * BLOCK}, fresh=(new(req, ([1, 2, 3],), BLOCK),))) == {"p": (2, 3)}


def test_a_preempted_request_has_other_blocks() -> None:
    rig, req = Rig(), request("r", 2 * BLOCK)
    rig.half.allocated(req, blocks([1, 2]), 0)
    rig.half.step(output({"r": 2 * BLOCK}, fresh=(new(req, ([1, 2],), 0),)))
    again = output({"r": 2 * BLOCK}, cached=(("r", ([8, 9],), 0),))
    again.scheduled_cached_reqs.resumed_req_ids.add("r")
    orders = rig.half.step(again)
    assert orders.writes == {0: {8, 9}} and orders.saves[0].groups[0].blocks == (8, 9)


def test_a_block_must_be_there_on_all_ranks() -> None:
    rig, req = Rig(tp=2), request("r", 4 * BLOCK)
    rig.half.matched_tokens(req, 0)
    assert [name for name, _, _ in rig.client.calls] == rig.identity.all_ranks(0)
    rig.client.calls[0][2].give([THERE, THERE, THERE])
    assert rig.half.matched_tokens(req, 0) == (None, False)
    rig.client.calls[1][2].give([THERE])
    assert rig.half.matched_tokens(req, 0) == (BLOCK, True)


def test_groups_of_several_block_sizes_agree_on_the_shortest_and_null_blocks_are_left_out() -> None:
    # Group 0 has blocks of 16 tokens, group 1 of 32, and its first block is outside its window.
    rig, req = Rig(groups=2), request("r", 6 * BLOCK + 1)
    rig.half.matched_tokens(req, 0)
    assert [len(hashes) for _, hashes, _ in rig.client.calls] == [6, 3]
    assert rig.client.calls[1][1] == [bytes(req.block_hashes[i]) for i in (1, 3, 5)]
    rig.client.calls[0][2].give([THERE] * 5 + [NO])
    rig.client.calls[1][2].give([THERE] * 3)
    assert rig.half.matched_tokens(req, 0) == (4 * BLOCK, True)
    rig.half.allocated(req, blocks([1, 2, 3, 4], [0, 9]), 4 * BLOCK)
    (load,) = rig.half.step(output({})).loads
    assert [group.blocks for group in load.groups] == [(1, 2, 3, 4), (9,)]
    assert load.groups[1].hashes == (bytes(req.block_hashes[3]),) and load.groups[1].parent == bytes(req.block_hashes[1])


def test_of_a_sliding_group_what_the_window_reaches_is_asked_for_and_loaded() -> None:
    rig, req = Rig(groups=2, window=1), request("r", 6 * BLOCK + 1)
    rig.half.matched_tokens(req, 0)
    assert rig.client.prefixes == [True, False], "the first blocks of a window may be gone where its last ones are not"
    rig.client.calls[0][2].give([THERE] * 6)
    rig.client.calls[1][2].give([NO, NO, THERE])
    assert rig.half.matched_tokens(req, 0) == (6 * BLOCK, True)
    rig.half.allocated(req, blocks([1, 2, 3, 4, 5, 6], [0, 0, 9]), 6 * BLOCK)
    (load,) = rig.half.step(output({})).loads
    assert [group.blocks for group in load.groups] == [(1, 2, 3, 4, 5, 6), (9,)]


def test_a_hand_off_is_waited_for_and_one_of_another_model_is_not() -> None:
    prefill = Rig()
    done = request("p", 3 * BLOCK + 2, {"do_remote_decode": True})
    prefill.half.allocated(done, blocks([1, 2, 3, 4]), 0)
    orders = prefill.half.step(output({"p": 3 * BLOCK + 2}, fresh=(new(done, ([1, 2, 3, 4],), 0),)))
    assert orders.saves[0].pin
    done.num_computed_tokens = 3 * BLOCK + 2
    held, params = prefill.half.finished(done)
    assert not held and params == {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "kvferry": {"namespace": prefill.identity.base, "tokens": 3 * BLOCK},
    }
    decode, req = Rig(lookup_timeout_s=0.1, handoff_timeout_s=5.0), request("d", 3 * BLOCK + 2, params)
    assert decode.half.matched_tokens(req, 0) == (None, False)
    decode.answer(THERE)
    decode.now = 1.0
    assert decode.half.matched_tokens(req, 0) == (None, False), "announced, so it comes"
    decode.now = 1.1
    assert decode.half.matched_tokens(req, 0) == (None, False)
    decode.answer(THERE, THERE, THERE)
    assert decode.half.matched_tokens(req, 0) == (3 * BLOCK, True)
    stranger = request("s", 3 * BLOCK + 2, {**params, "kvferry": {"namespace": "t/other/1", "tokens": 3 * BLOCK}})
    assert decode.half.matched_tokens(stranger, 0) == (None, False)
    decode.now += 0.1
    assert decode.half.matched_tokens(stranger, 0) == (0, False), "as any other look-up"


def test_without_an_agent_everything_is_a_miss_at_once() -> None:
    rig = Rig()
    rig.link.session = None
    assert rig.half.matched_tokens(request("r", 4 * BLOCK), 0) == (0, False)


def test_nothing_is_kept_of_a_request_that_is_gone() -> None:
    rig, req = Rig(), request("r", 4 * BLOCK)
    rig.half.matched_tokens(req, 0)
    assert rig.half.finished(req) == (False, None)
    assert rig.client.calls[0][2].cancelled
    assert not rig.half._tracked and not rig.half.lookups._asked
