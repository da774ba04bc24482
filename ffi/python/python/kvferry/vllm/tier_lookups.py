"""A tier's look-ups: one batch a step, answers remembered for a moment. Nothing here waits; time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import kvferry

# How long an answer is taken for true. Long enough for a request to be scheduled by it; it is a hint anyway.
ANSWER_AGE_S = 1.0
# A chunk whose load failed is a miss for as long: vLLM would go on loading it otherwise.
REFUSED_S = 10.0
# Answers remembered; the oldest go first.
MAX_KNOWN = 65_536
# Of one call: an agent's bound is 65,536 hashes, and an answer should not take long.
MAX_BATCH = 4_096
# Batches under way: what is beyond waits for the next step.
MAX_BATCHES = 16

Ask = Callable[[Sequence[bytes]], "kvferry.Call[list[kvferry.Place]] | None"]


@dataclass
class _Batch:
    keys: list[bytes]
    call: kvferry.Call[list[kvferry.Place]]


class TierLookups:
    """`find` answers True, False, or None: not known yet. By `timeout_s` after the first time it was asked it is known."""

    def __init__(self, ask: Ask, failed: Callable[[BaseException], None], timeout_s: float) -> None:
        self._ask, self._failed, self._timeout_s = ask, failed, timeout_s
        self._known: OrderedDict[bytes, tuple[bool, float]] = OrderedDict()
        self._deadlines: dict[bytes, float] = {}
        self._wanted: list[bytes] = []
        self._batches: list[_Batch] = []
        self.late = 0
        self.errors = 0

    def find(self, now: float, key: bytes) -> bool | None:
        known = self._known.get(key)
        if known is not None and now < known[1]:
            return known[0]
        deadline = self._deadlines.get(key)
        if deadline is None:
            if len(self._deadlines) >= MAX_KNOWN:
                return False
            self._deadlines[key] = now + self._timeout_s
            self._wanted.append(key)
            return None
        if now < deadline:
            return None
        self.late += 1
        self._remember(key, False, now + ANSWER_AGE_S)
        return False

    def refuse(self, now: float, keys: Iterable[bytes]) -> None:
        """They could not be had: misses for a while."""
        for key in keys:
            self._remember(key, False, now + REFUSED_S)

    def step(self, now: float) -> None:
        """At the end of a step: takes answers in, and asks for what was wanted."""
        for batch in [batch for batch in self._batches if batch.call.done()]:
            self._batches.remove(batch)
            self._take(now, batch)
        while self._wanted and len(self._batches) < MAX_BATCHES:
            keys, self._wanted = self._wanted[:MAX_BATCH], self._wanted[MAX_BATCH:]
            call = self._ask(keys)
            if call is None:
                for key in keys:
                    self._remember(key, False, now + ANSWER_AGE_S)
                continue
            self._batches.append(_Batch(keys, call))

    def _take(self, now: float, batch: _Batch) -> None:
        try:
            places: Sequence[kvferry.Place] = batch.call.result(0.0)
        except kvferry.NamespaceUnknownError:
            places = ()
        except kvferry.KvferryError as error:
            # Not a miss; but whoever asked does not wait for the outage's end, and asks again soon.
            self.errors += 1
            self._failed(error)
            places = ()
        held = (kvferry.Place.LOCAL, kvferry.Place.REMOTE)
        for number, key in enumerate(batch.keys):
            refused = self._known.get(key)
            if refused is not None and now < refused[1]:
                continue
            self._remember(key, number < len(places) and places[number] in held, now + ANSWER_AGE_S)

    def _remember(self, key: bytes, found: bool, until: float) -> None:
        self._deadlines.pop(key, None)
        self._known[key] = (found, until)
        self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
