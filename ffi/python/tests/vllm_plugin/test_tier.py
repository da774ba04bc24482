"""The parts of the tier: look-ups in batches, and slots that are withdrawn before they are overwritten."""

from __future__ import annotations

from typing import Any

import kvferry
import pytest
from kvferry import Place
from kvferry.vllm.tier_lookups import ANSWER_AGE_S, MAX_BATCH, REFUSED_S, TierLookups
from kvferry.vllm.tier_slots import Slots

from .standin import StubCall, StubSlots


class Rig:
    def __init__(self) -> None:
        self.calls: list[tuple[list[bytes], StubCall]] = []
        self.errors: list[BaseException] = []
        self.up = True
        self.lookups = TierLookups(self._ask, self.errors.append, 1.0)

    def _ask(self, keys: Any) -> Any:
        if not self.up:
            return None
        self.calls.append((list(keys), StubCall()))
        return self.calls[-1][1]


def test_one_batch_a_step_and_answers_are_remembered() -> None:
    rig = Rig()
    assert rig.lookups.find(0.0, b"a") is None and rig.lookups.find(0.0, b"b") is None
    assert rig.lookups.find(0.0, b"a") is None and not rig.calls, "nothing is asked within a step"
    rig.lookups.step(0.0)
    assert [keys for keys, _ in rig.calls] == [[b"a", b"b"]]
    for now in (0.1, 0.2):
        assert rig.lookups.find(now, b"a") is None
        rig.lookups.step(now)
    assert len(rig.calls) == 1, "a thousand polls cost nothing"
    rig.calls[0][1].give([Place.REMOTE, Place.MISSING])
    rig.lookups.step(0.3)
    assert rig.lookups.find(0.4, b"a") is True and rig.lookups.find(0.4, b"b") is False
    assert rig.lookups.find(0.4 + ANSWER_AGE_S, b"a") is None, "asked again when the answer is old"


def test_no_answer_by_the_deadline_is_a_miss() -> None:
    rig = Rig()
    rig.lookups.find(0.0, b"a")
    rig.lookups.step(0.0)
    assert rig.lookups.find(0.9, b"a") is None
    assert rig.lookups.find(1.0, b"a") is False
    assert rig.lookups.late == 1


def test_what_could_not_be_loaded_is_a_miss_even_if_a_late_answer_says_it_is_there() -> None:
    rig = Rig()
    rig.lookups.find(0.0, b"a")
    rig.lookups.step(0.0)
    rig.lookups.refuse(0.1, [b"a"])
    rig.calls[0][1].give([Place.REMOTE])
    rig.lookups.step(0.2)
    assert rig.lookups.find(0.3, b"a") is False
    assert rig.lookups.find(0.1 + REFUSED_S, b"a") is None


def test_an_outage_and_no_agent_are_misses_for_a_moment() -> None:
    rig = Rig()
    rig.lookups.find(0.0, b"a")
    rig.lookups.step(0.0)
    rig.calls[0][1].give(kvferry.CoordinatorUnreachableError("none"))
    rig.lookups.step(0.1)
    assert rig.lookups.find(0.2, b"a") is False and rig.lookups.errors == 1 and rig.errors
    rig.up = False
    rig.lookups.find(0.2, b"b")
    rig.lookups.step(0.2)
    assert rig.lookups.find(0.3, b"b") is False


def test_large_batches_are_cut() -> None:
    rig = Rig()
    for number in range(MAX_BATCH + 1):
        rig.lookups.find(0.0, number.to_bytes(8, "big"))
    rig.lookups.step(0.0)
    assert [len(keys) for keys, _ in rig.calls] == [MAX_BATCH, 1]


def slots() -> tuple[Slots, StubSlots]:
    agent = StubSlots()
    return Slots(agent, None), agent  # type: ignore[arg-type]


def test_a_published_slot_is_withdrawn_once_and_then_sealed_again() -> None:
    mine, agent = slots()
    mine.publish([3, 5], [b"x", b"y"])
    assert agent.sealed == {3: b"x", 5: b"y"}
    assert mine.withdraw([3, 4]) == set()
    assert agent.sealed == {5: b"y"}, "nobody takes slot 3 for a block any more"
    before = len(agent.calls)
    assert mine.withdraw([3]) == set() and len(agent.calls) == before
    mine.publish([3], [b"z"])
    assert agent.sealed == {3: b"z", 5: b"y"}


def test_a_slot_that_is_pinned_stays_and_the_others_go() -> None:
    mine, agent = slots()
    mine.publish([1, 2, 3], [b"a", b"b", b"c"])
    agent.busy = {2}
    assert mine.withdraw([1, 2, 3]) == {2}
    assert agent.sealed == {2: b"b"}
    agent.busy = set()
    assert mine.withdraw([2]) == set() and not agent.sealed


def test_a_seal_of_which_nobody_knows_whether_it_was_done_is_withdrawn_too() -> None:
    mine, agent = slots()
    with pytest.raises(kvferry.DeadlineError):
        # The reserve succeeds, the seal's answer is lost: but it was done.
        real = agent.seal

        def lost(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            raise kvferry.DeadlineError("no answer")

        agent.seal = lost  # type: ignore[method-assign]
        mine.publish([7], [b"a"])
    assert agent.sealed == {7: b"a"}
    assert mine.withdraw([7]) == set()
    assert not agent.sealed


def test_an_agent_that_does_not_answer_keeps_the_chunk() -> None:
    mine, agent = slots()
    mine.publish([7], [b"a"])
    agent.fail = [kvferry.DeadlineError("no answer")]
    with pytest.raises(kvferry.DeadlineError):
        mine.withdraw([7])
    assert mine.published_of([6, 7]) == {7}, "it may still be published, so it must not be overwritten"
    assert mine.withdraw([7]) == set()


def test_a_pull_takes_what_was_reserved() -> None:
    mine, agent = slots()
    mine.publish([1], [b"a"])
    mine.withdraw([1])
    mine.release([1, 2])
    assert agent.calls[-1] == ("abort", (1,)) and not agent.reserved
    agent.sealed[1] = b"b"
    mine.landed([1])
    assert mine.withdraw([1]) == set() and not agent.sealed
