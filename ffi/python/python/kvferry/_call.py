"""Calls under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar, cast

from ._words import Outcome, PinnedBlock, PullResult, outcomes
from .errors import KvferryError, NotDoneError

T = TypeVar("T")
_MISSING = object()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _heard(subscribe: Callable[[Callable[[object], None]], None]) -> asyncio.Future[None]:
    """A future of the running loop that ends when what it is subscribed to does, on whichever thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def heard(_: object) -> None:
        try:
            loop.call_soon_threadsafe(_wake, future)
        except RuntimeError:
            pass  # The loop was closed; nobody waits there any more.

    subscribe(heard)
    return future


class Call(Awaitable[T], Generic[T]):
    """A call under way. Any thread may use it; it ends by its deadline whatever happens. A call goes on when nobody holds
    this object any more."""

    __slots__ = ("_native", "_convert", "_answer", "__weakref__")

    def __init__(self, native: Any, convert: Callable[[Any], T]) -> None:
        self._native = native
        self._convert = convert
        self._answer: Any = _MISSING

    def done(self) -> bool:
        """Whether it has ended. Never waits."""
        return self._native.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits without the GIL until it has ended, at most `timeout` seconds; True where it has."""
        return self._native.wait(timeout)

    def result(self, timeout: float | None = None) -> T:
        """Its answer, or its failure raised. NotDoneError where it has not ended within `timeout`: it goes on."""
        if self._answer is _MISSING:
            self._answer = self._convert(self._native.result(timeout))
        return cast(T, self._answer)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Its failure, None where it succeeded. NotDoneError (raised) where it has not ended within `timeout`."""
        try:
            self.result(timeout)
        except NotDoneError:
            raise
        except KvferryError as error:
            return error
        return None

    def cancel(self) -> None:
        """Gives it up: it ends soon with CancelledError. What the agent had begun may still happen."""
        self._native.cancel()

    def add_done_callback(self, function: Callable[[Call[T]], object]) -> None:
        """Has `function` called once with this call, on a thread of the library, or at once where it has ended already. It
        must not block; what it raises is written to sys.unraisablehook."""
        self._native.subscribe(function, self)

    def fileno(self) -> int:
        """An eventfd that can be read once it has ended. The call's own: watch it, neither read nor close it."""
        return self._native.fileno()

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            future = _heard(lambda heard: self._native.subscribe(heard, None))
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result(0)


class Pull(Call[PullResult]):
    """A pull under way; given up where nobody holds this object any more.

    Every hash has exactly one outcome by the pull's timeout (2 s later where the agent itself has stopped). `result` raises
    only where the pull as a whole failed (refused, agent lost, cancelled); failures of single blocks are outcomes. Its
    `fileno` can be read exactly while `poll` has something new to say. A block's bytes are there as soon as its outcome
    is."""

    __slots__ = ("_client", "_pin_ttl")

    def __init__(self, native: Any, client: Any, pin_ttl: float) -> None:
        super().__init__(native, lambda it: it)
        self._client = client
        self._pin_ttl = pin_ttl

    def result(self, timeout: float | None = None) -> PullResult:
        """Its answer, or why the pull as a whole failed. NotDoneError where it has not ended within `timeout`."""
        if self._answer is _MISSING:
            summary = self._native.summary(timeout)
            self._answer = self._made(summary)
        return cast(PullResult, self._answer)

    def _made(self, summary: tuple[int, ...]) -> PullResult:
        from ._regions import Pin

        pulled, moved, locate, connect, wire, total, token = summary
        all_of = tuple(sorted(self.outcomes()))
        pin = None
        if token:
            blocks = tuple(PinnedBlock(it.region, it.slot, it.generation) if it.ok else None for it in all_of)
            pin = Pin(self._client, token, blocks, self._pin_ttl)
        return PullResult(all_of, pulled, moved, locate / 1e6, connect / 1e6, wire / 1e6, total / 1e6, pin)

    def poll(self) -> list[Outcome]:
        """Outcomes that `poll` has not given before, in the order in which they came. Never waits."""
        return outcomes(self._native.poll())

    def outcomes(self) -> list[Outcome]:
        """All that are there, in the order in which they came; of all blocks where `done()`, also after a failure."""
        return outcomes(self._native.outcomes())

    @property
    def stages_landed(self) -> int:
        """Of every block that has no outcome so far, so many of the stages that were asked for are there. Never lowers."""
        return self._native.stages_landed()

    def wait_stage(self, number: int, timeout: float | None = None) -> bool:
        """Waits without the GIL until the first `number` stages are there of every block that has no outcome, or the pull has
        ended; at most `timeout` seconds. True where that is so. The planes of those stages may be read then; a block may still
        fail, so what was made of them counts only once its outcome is there. Blocks with checksums come whole: they are
        waited for."""
        return self._native.wait_stages(number, timeout)

    async def stage(self, number: int) -> None:
        """As `wait_stage`, for asyncio. A cancelled task does not give the pull up."""
        await _heard(lambda heard: self._native.subscribe_stages(number, heard, None))

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        loop = asyncio.get_running_loop()
        descriptor = self.fileno()
        while True:
            ended = self.done()
            fresh = self.poll()
            for outcome in fresh:
                yield outcome
            if ended:
                return
            if fresh:
                continue
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(descriptor, _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)

