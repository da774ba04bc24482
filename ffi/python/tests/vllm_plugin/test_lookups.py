"""A connector's look-ups: never waiting, and known by their deadline whatever happens."""

from __future__ import annotations

from typing import Any

import kvferry
from kvferry import Place
from kvferry.vllm.lookups import ANSWER_AGE_S, HANDOFF_PAUSE_S, MAX_CALLS, Lookups, Question

from .standin import StubCall

HERE, THERE, NO = Place.LOCAL, Place.REMOTE, Place.MISSING


class Rig:
    def __init__(self) -> None:
        self.calls: list[tuple[str, StubCall]] = []
        self.up = True
        self.errors: list[BaseException] = []
        self.lookups = Lookups(self._ask, self.errors.append)

    def _ask(self, namespace: str, hashes: Any, prefix: bool) -> Any:
        if not self.up:
            return None
        call = StubCall()
        self.calls.append((namespace, call))
        return call

    def poll(self, now: float, request: str = "r", first: int = 0, expect: int = 0, ranks: int = 1) -> int | None:
        namespaces = tuple(f"ns{rank}" for rank in range(ranks))
        question = Question(namespaces, (b"a" * 32, b"b" * 32, b"c" * 32), 32)
        return self.lookups.poll(now, request, first, [question], 32, 1.0, expect)


def test_nothing_is_known_until_the_answer_is_there() -> None:
    rig = Rig()
    assert rig.poll(0.0) is None and rig.poll(0.5) is None
    assert len(rig.calls) == 1, "asked once, however often it is polled"
    rig.calls[0][1].give([THERE, HERE, NO])
    assert rig.poll(0.6) == 64
    assert rig.poll(0.7) == 64 and len(rig.calls) == 1


def test_a_late_answer_is_a_miss() -> None:
    rig = Rig()
    assert rig.poll(0.0) is None
    assert rig.poll(1.0) == 0
    assert rig.calls[0][1].cancelled
    counts = rig.lookups.take_counts()
    assert (counts.lookups, counts.late, counts.hits) == (1, 1, 0)


def test_a_block_is_there_when_all_ranks_have_it() -> None:
    rig = Rig()
    assert rig.poll(0.0, ranks=2) is None
    rig.calls[0][1].give([THERE, THERE, THERE])
    assert rig.poll(0.1, ranks=2) is None
    rig.calls[1][1].give([THERE])
    assert rig.poll(0.2, ranks=2) == 32


def test_of_sliding_layers_a_hit_needs_what_the_window_reaches() -> None:
    rig = Rig()
    full = Question(("full",), tuple(bytes([n]) * 32 for n in range(6)), 32)
    sliding = Question(("sliding",), full.hashes, 32, window=2)

    def poll(name: str, full_run: int, places: str) -> int | None:
        assert rig.lookups.poll(0.0, name, 0, [full, sliding], 32, 1.0) is None
        (_, of_full), (_, of_sliding) = rig.calls[-2:]
        of_full.give([THERE] * full_run)
        of_sliding.give([THERE if place == "x" else NO for place in places])
        return rig.lookups.poll(0.1, name, 0, [full, sliding], 32, 1.0)

    assert poll("only the end of it", 6, "....xx") == 192
    assert poll("the window has a hole", 6, ".xx.x.") == 96
    assert poll("not as far as the full layers", 6, "xxx...") == 96
    assert poll("further than the full layers", 4, "....xx") == 0
    assert poll("shorter than the window", 6, "x.....") == 32
    assert poll("nothing of it", 6, "......") == 0
    assert poll("of the full layers all from the first on", 2, "xxxxxx") == 64


def test_an_outage_is_counted_and_told_and_does_not_hold_the_request() -> None:
    rig = Rig()
    assert rig.poll(0.0) is None
    rig.calls[0][1].give(kvferry.CoordinatorUnreachableError("no coordinator"))
    assert rig.poll(0.1) == 0
    assert rig.lookups.take_counts().errors == 1 and len(rig.errors) == 1


def test_a_namespace_that_nobody_uses_yet_is_no_error() -> None:
    rig = Rig()
    assert rig.poll(0.0) is None
    rig.calls[0][1].give(kvferry.NamespaceUnknownError("nobody"))
    assert rig.poll(0.1) == 0
    assert rig.lookups.take_counts().errors == 0 and not rig.errors


def test_without_an_agent_everything_is_a_miss_at_once() -> None:
    rig = Rig()
    rig.up = False
    assert rig.poll(0.0) == 0


def test_an_announced_hand_off_is_asked_for_until_it_is_there() -> None:
    rig = Rig()
    assert rig.poll(0.0, expect=96) is None
    rig.calls[0][1].give([THERE])
    assert rig.poll(0.1, expect=96) is None, "32 tokens of 96"
    assert rig.poll(0.1 + HANDOFF_PAUSE_S / 2, expect=96) is None and len(rig.calls) == 1
    assert rig.poll(0.2, expect=96) is None and len(rig.calls) == 2
    rig.calls[1][1].give([THERE, THERE, THERE])
    assert rig.poll(0.3, expect=96) == 96


def test_what_of_a_hand_off_is_there_by_the_deadline_is_taken() -> None:
    rig = Rig()
    assert rig.poll(0.0, expect=96) is None
    rig.calls[0][1].give([THERE])
    assert rig.poll(1.0, expect=96) == 32


def test_also_where_the_last_answer_is_late() -> None:
    rig = Rig()
    assert rig.poll(0.0, expect=96) is None
    rig.calls[0][1].give([THERE, THERE])
    assert rig.poll(0.5, expect=96) is None and rig.poll(0.6, expect=96) is None
    assert len(rig.calls) == 2
    assert rig.poll(1.0, expect=96) == 64 and rig.calls[1][1].cancelled


def test_an_answer_grows_old() -> None:
    rig = Rig()
    rig.poll(0.0)
    rig.calls[0][1].give([THERE])
    assert rig.poll(0.1) == 32
    assert rig.poll(0.2 + ANSWER_AGE_S) is None and len(rig.calls) == 2


def test_another_beginning_is_another_question() -> None:
    rig = Rig()
    rig.poll(0.0)
    assert rig.poll(0.1, first=32) is None
    assert len(rig.calls) == 2 and rig.calls[0][1].cancelled


def test_calls_under_way_are_bounded_and_nothing_is_lost() -> None:
    rig = Rig()
    for number in range(MAX_CALLS + 1):
        assert rig.poll(0.0, request=f"r{number}") is None
    assert len(rig.calls) == MAX_CALLS
    rig.calls[0][1].give([THERE])
    assert rig.poll(0.1, request="r0") == 32
    assert rig.poll(0.1, request=f"r{MAX_CALLS}") is None
    assert len(rig.calls) == MAX_CALLS + 1, "asked as soon as there was room"


def test_a_forgotten_request_gives_its_room_back() -> None:
    rig = Rig()
    for number in range(MAX_CALLS):
        rig.poll(0.0, request=f"r{number}")
    rig.lookups.forget("r0")
    rig.poll(0.0, request="new")
    assert len(rig.calls) == MAX_CALLS + 1
