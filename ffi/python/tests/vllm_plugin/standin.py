"""An agent in memory, for unit tests of the parts that talk to one. It keeps the rules that matter to them: what may be reserved,
sealed and aborted, and that a call may never be answered."""

from __future__ import annotations

from typing import Any

import kvferry


class StubCall:
    """A call whose answer the test gives."""

    def __init__(self, answer: Any = None, done: bool = False) -> None:
        self.answer, self.ended, self.cancelled = answer, done, False

    def give(self, answer: Any) -> None:
        self.answer, self.ended = answer, True

    def done(self) -> bool:
        return self.ended

    def result(self, timeout: float | None = None) -> Any:
        assert self.ended, "asked for an answer that is not there: this would wait"
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def cancel(self) -> None:
        self.cancelled = True


class StubSlots:
    """A region's slots: free, reserved, sealed, pinned; `calls` is what was asked, in order."""

    def __init__(self) -> None:
        self.reserved: set[int] = set()
        self.sealed: dict[int, bytes] = {}
        self.busy: set[int] = set()
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.fail: list[BaseException] = []

    def _asked(self, what: str, slots: Any) -> None:
        self.calls.append((what, tuple(slots)))
        if self.fail:
            raise self.fail.pop(0)

    def reserve(self, region: Any, slots: Any) -> list[int]:
        self._asked("reserve", slots)
        if busy := self.busy & set(slots):
            raise kvferry.SlotBusyError(f"slots {sorted(busy)} are pinned")
        for slot in slots:
            self.sealed.pop(slot, None)
        self.reserved.update(slots)
        return list(slots)

    def seal(self, region: Any, slots: Any, hashes: Any, **_: Any) -> None:
        self._asked("seal", slots)
        if not set(slots) <= self.reserved:
            raise kvferry.SlotNotReservedError(f"{sorted(set(slots) - self.reserved)}")
        self.reserved.difference_update(slots)
        self.sealed.update(zip(slots, hashes))

    def abort(self, region: Any, slots: Any) -> None:
        self._asked("abort", slots)
        if not set(slots) <= self.reserved:
            raise kvferry.SlotNotReservedError(f"{sorted(set(slots) - self.reserved)}")
        self.reserved.difference_update(slots)
