"""What the scheduler's half tells the worker's half each step. Plain data: it is pickled between processes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GroupBlocks:
    """Blocks of one KV cache group: `blocks[i]` is the engine's block id of the block with hash `hashes[i]`."""

    group: int
    blocks: tuple[int, ...]
    hashes: tuple[bytes, ...]
    parent: bytes | None = None
    """Hash of the block before the first one, where there is one."""


@dataclass(frozen=True)
class LoadOrder:
    """Bring these blocks into the engine's memory."""

    request: str
    groups: tuple[GroupBlocks, ...]
    within_step: bool = False
    """In the step that needs them, and not before it."""

    @property
    def blocks(self) -> int:
        return sum(len(group.blocks) for group in self.groups)


@dataclass(frozen=True)
class SaveOrder:
    """These blocks are complete when the step's forward pass is: publish them."""

    request: str
    groups: tuple[GroupBlocks, ...]
    pin: bool = False
    """Hand-off: keep them for the decoding engine."""


@dataclass
class StepOrders:
    """All of one step."""

    loads: list[LoadOrder] = field(default_factory=list)
    saves: list[SaveOrder] = field(default_factory=list)
    writes: dict[int, set[int]] = field(default_factory=dict)
    """Per group: blocks that this step's forward pass may write to."""
    idle: bool = False
    """No token is computed in this step."""
