"""What a worker needs of the two ways to share an engine's KV cache: `pool.py` and `in_place.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import kvferry

from .metadata import GroupBlocks


@dataclass
class Moved:
    """What came of a load or a publication."""

    blocks: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    dropped: int = 0
    """Blocks that were not published, because there was no room or no agent."""
    failures: dict[str, int] = field(default_factory=dict)
    """Blocks that did not come, by the kind of their outcome."""

    def fail(self, kind: str, blocks: int = 1) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + blocks


class Load(Protocol):
    """Blocks on their way into the engine's memory. It ends by its deadline, whatever happens."""

    def done(self) -> bool:
        """Never waits."""

    def wait(self, timeout_s: float) -> bool:
        """Waits for at most that; True where it has ended."""

    def layer(self, name: str) -> None:
        """Puts that layer's planes in place, waiting for them. For loads within a step."""

    def finish(self) -> frozenset[int]:
        """Of a load that is done: puts in place what is not yet, and says which block ids hold nothing of use."""

    moved: Moved


class Medium(Protocol):
    """One KV cache group of one worker, as one session with the agent has it. Its calls raise KvferryError where the agent
    does not answer as it should; the engine's memory is then as before, or named by the load's `finish`."""

    def before_writes(self, blocks: set[int]) -> None:
        """Called before a forward pass may write to these blocks: afterwards nobody takes their bytes for what they
        were. RuntimeError where that cannot be had: the engine must not go on then."""

    def publish(self, blocks: GroupBlocks, *, pin_s: float | None) -> Moved:
        """These are complete: peers may have them."""

    def load(self, blocks: GroupBlocks, timeout_s: float) -> Load:
        """Begins to bring them."""


def run_of(outcomes: list[kvferry.Outcome]) -> dict[int, kvferry.Outcome]:
    """By index."""
    return {outcome.index: outcome for outcome in outcomes}
