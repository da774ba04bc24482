"""Which blocks could be had: look-ups under way, one per request. Nothing here waits; time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import kvferry

# How long an answer is taken for true while its request waits to be scheduled.
ANSWER_AGE_S = 2.0
# A hand-off that is not all there yet is asked for again after this: seldom enough for a coordinator, often for a request.
HANDOFF_PAUSE_S = 0.005
# Calls under way at once; more requests than that are told to come again.
MAX_CALLS = 512

# Namespace, hashes, and whether only the run from the first one on is of interest.
Ask = Callable[[str, Sequence[bytes], bool], "kvferry.Call[list[kvferry.Place]] | None"]


@dataclass(frozen=True)
class Question:
    """Of one group: up to which of these hashes is there on all ranks what a hit needs?"""

    namespaces: tuple[str, ...]
    hashes: tuple[bytes, ...]
    tokens: int
    """Tokens of a block."""
    window: int | None = None
    """So many blocks back from its end a hit needs; None: all. What an engine has of sliding layers is often no more."""

    def held(self, answers: Sequence[Sequence[bool]]) -> list[int]:
        """By number of blocks: how many in a row are there on all ranks before that point. `answers`: of each rank."""
        runs, run = [0], 0
        for block in range(min((len(answer) for answer in answers), default=0)):
            run = run + 1 if all(answer[block] for answer in answers) else 0
            runs.append(run)
        return runs


@dataclass
class Counts:
    """What came of look-ups, since last taken."""

    lookups: int = 0
    hits: int = 0
    late: int = 0
    errors: int = 0


@dataclass
class _Asked:
    first: int
    began: float
    deadline: float
    calls: list[tuple[int, kvferry.Call[list[kvferry.Place]]]] = field(default_factory=list)
    best: int = 0
    """Of a hand-off: what was there when it was last asked for."""
    tokens: int | None = None
    answered: float = 0.0
    again: float = 0.0


class Lookups:
    """`poll` until it is not None; `forget` when the request is admitted or gone."""

    def __init__(self, ask: Ask, failed: Callable[[BaseException], None]) -> None:
        self._ask, self._failed = ask, failed
        self._asked: dict[str, _Asked] = {}
        self._under_way = 0
        self.counts = Counts()

    def poll(
        self,
        now: float,
        request: str,
        first: int,
        questions: Sequence[Question],
        align: int,
        timeout_s: float,
        expect: int = 0,
    ) -> int | None:
        """Tokens, from token `first` on, that could be had: a multiple of `align`; None: not known yet. By `timeout_s` after
        its first call it is known: what is not known then is 0. `expect`: so many were announced; asked for again until then."""
        asked = self._asked.get(request)
        if asked is not None and (asked.first != first or (asked.tokens is not None and now - asked.answered > ANSWER_AGE_S)):
            self.forget(request)
            asked = None
        if asked is None:
            asked = self._asked[request] = _Asked(first, now, now + timeout_s)
            self.counts.lookups += 1
        if asked.tokens is not None:
            return asked.tokens
        if not asked.calls and now >= asked.again and self._under_way < MAX_CALLS and not self._begin(asked, questions):
            return self._answer(asked, now, 0)
        if asked.calls and all(call.done() for _, call in asked.calls):
            tokens = self._read(asked, questions, align)
            if tokens >= expect or now >= asked.deadline:
                return self._answer(asked, now, tokens)
            asked.best, asked.again = tokens, now + HANDOFF_PAUSE_S
        if now >= asked.deadline:
            self.counts.late += 1
            self._drop(asked)
            return self._answer(asked, now, asked.best)
        return None

    def forget(self, request: str) -> None:
        """Its answer is of no more use."""
        if (asked := self._asked.pop(request, None)) is not None:
            self._drop(asked)

    def take_counts(self) -> Counts:
        counts, self.counts = self.counts, Counts()
        return counts

    def _begin(self, asked: _Asked, questions: Sequence[Question]) -> bool:
        """False: there is no agent to ask."""
        for number, question in enumerate(questions):
            for namespace in question.namespaces:
                call = self._ask(namespace, question.hashes, question.window is None)
                if call is None:
                    self._drop(asked)
                    return False
                asked.calls.append((number, call))
                self._under_way += 1
        return True

    def _read(self, asked: _Asked, questions: Sequence[Question], align: int) -> int:
        answers: list[list[list[bool]]] = [[] for _ in questions]
        for number, call in asked.calls:
            answers[number].append(self._places(call))
        self._under_way -= len(asked.calls)
        asked.calls.clear()
        held = [question.held(answers[number]) for number, question in enumerate(questions)]
        tokens = min(((len(runs) - 1) * question.tokens for runs, question in zip(held, questions)), default=0) // align * align
        while tokens > 0 and not all(_enough(runs, question, tokens) for runs, question in zip(held, questions)):
            tokens -= align
        return tokens

    def _places(self, call: kvferry.Call[list[kvferry.Place]]) -> list[bool]:
        try:
            places = call.result(0.0)
        except kvferry.NamespaceUnknownError:
            return []  # nobody has published anything yet
        except kvferry.KvferryError as error:
            # An outage is not a miss; but this request does not wait for its end.
            self.counts.errors += 1
            self._failed(error)
            return []
        return [place in (kvferry.Place.LOCAL, kvferry.Place.REMOTE) for place in places]

    def _answer(self, asked: _Asked, now: float, tokens: int) -> int:
        asked.tokens, asked.answered = tokens, now
        self.counts.hits += tokens > 0
        return tokens

    def _drop(self, asked: _Asked) -> None:
        for _, call in asked.calls:
            call.cancel()
        self._under_way -= len(asked.calls)
        asked.calls.clear()


def _enough(runs: list[int], question: Question, tokens: int) -> bool:
    """Whether a hit of so many tokens could be loaded, of this group."""
    blocks = tokens // question.tokens
    return runs[blocks] >= (blocks if question.window is None else min(blocks, question.window))
