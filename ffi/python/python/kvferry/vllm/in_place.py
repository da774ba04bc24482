"""Sharing the engine's KV cache where it lies: its memory is registered once, blocks are sealed in their own slots, peers
read them there and pulls land there. No copy is made.

Slots are the engine's block ids. A slot is reserved before a forward pass may write to it and sealed after the pass
that completed it, so a peer that reads meanwhile sees that it changed. A GPU's cache is registered by CUDA IPC; host memory
by `kvferry.share_in_place`, which makes its pages shared.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import kvferry

from .medium import Moved, run_of
from .metadata import GroupBlocks
from .planes import LayoutError, Part

if TYPE_CHECKING:
    import torch

# How long a forward pass waits for a slot that somebody has pinned, or that a read which was given up may still write to.
# Beyond that the engine must stop: it would compute into memory that changes under it.
BUSY_BOUND_S = 60.0
BUSY_PAUSE_S = 0.002
# What a stage of a load is worth: below that its own round trip costs as much as its bytes, and layers come together.
STAGE_BYTES = 1 << 20
# An agent's bound on stages times blocks of one pull.
MAX_PARTS = 131_072


def whole_storage(parts: list[Part], layer: torch.Tensor) -> torch.Tensor:
    """All of the storage behind a group's planes, as bytes. LayoutError where they lie in several."""
    import torch

    if len({part.storage for part in parts}) != 1:
        raise LayoutError("the layers lie in several allocations")
    return torch.empty(0, dtype=torch.uint8, device=layer.device).set_(layer.untyped_storage())


def stages_of(layers: list[str], plane_bytes: int, blocks: int) -> tuple[list[int], dict[str, int]]:
    """How a load of so many blocks comes by layers: the planes of each stage, and how many stages a layer waits for. `layers`
    names each plane's, in order. A stage is one layer, or several where one is not worth a stage."""
    worth = -(-STAGE_BYTES // max(plane_bytes * blocks, 1))
    most = max(MAX_PARTS // max(blocks, 1), 1)
    least = max(worth, -(-len(layers) // most))
    stages: list[int] = []
    last: dict[str, int] = {}
    planes = 0
    for number, layer in enumerate(layers):
        planes += 1
        last[layer] = len(stages) + 1
        ends = number + 1 == len(layers) or layers[number + 1] != layer
        if ends and (planes >= least or number + 1 == len(layers)):
            stages.append(planes)
            planes = 0
    return stages, last


class InPlaceMedium:
    """See `Medium`. One region: the engine's KV cache. `by_layer`: loads are waited for layer by layer."""

    def __init__(
        self,
        client: kvferry.Client,
        namespace: kvferry.Namespace,
        parts: list[Part],
        storage: torch.Tensor,
        *,
        by_layer: bool = False,
    ) -> None:
        self._client, self._namespace = client, namespace
        self._layers = [part.layer for part in parts] if by_layer else []
        self._cuda = storage.device.type == "cuda"
        blocks = int(parts[0].bytes.shape[0])
        planes = tuple(kvferry.Plane(part.strip.base, part.strip.stride, part.strip.len) for part in parts)
        geometry = kvferry.Geometry(blocks, planes)
        if self._cuda:
            self._region = client.register_cuda(namespace, storage, geometry)
        else:
            kvferry.share_in_place(storage)
            self._region = client.register_buffer(namespace, storage, geometry)
        # The agent's view of slots, as far as this connection made it: in neither set, a slot may be sealed or free.
        self._reserved: set[int] = set()
        self._unsealed: list[_Unsealed] = []

    def before_writes(self, blocks: set[int]) -> None:
        try:
            self._seal_ready()
        finally:
            # Whatever became of what is published: nobody takes these for what they were any more.
            self._take(blocks)

    def _take(self, blocks: set[int]) -> None:
        """Has them reserved, and what was to be sealed of them forgotten."""
        self._forget(blocks)
        needed = blocks - self._reserved
        deadline = time.monotonic() + BUSY_BOUND_S
        while needed:
            try:
                self._client.reserve(self._region, sorted(needed))
            except (kvferry.SlotBusyError, kvferry.DeadlineError) as error:
                if time.monotonic() >= deadline:
                    raise RuntimeError(
                        f"kvferry: blocks of the KV cache are still in use by the agent after {BUSY_BOUND_S:g} s: {error}"
                    ) from error
                time.sleep(BUSY_PAUSE_S)
                continue
            self._reserved |= needed
            return

    def publish(self, blocks: GroupBlocks, *, pin_s: float | None) -> Moved:
        began = time.monotonic()
        # Written before this session began: nobody has them, so they are taken now.
        late = set(blocks.blocks) - self._reserved
        if late:
            self._client.reserve(self._region, sorted(late))
            self._reserved |= late
        self._unsealed.append(_Unsealed(blocks, self._written()))
        self._seal_ready()
        count = len(blocks.blocks)
        return Moved(count, count * self._namespace.layout.block_bytes, time.monotonic() - began)

    def load(self, blocks: GroupBlocks, timeout_s: float) -> InPlaceLoad:
        self._forget(set(blocks.blocks))
        if held := sorted(set(blocks.blocks) & self._reserved):
            # The pull reserves them for itself.
            self._client.abort(self._region, held)
            self._reserved.difference_update(held)
        stages, layers = stages_of(self._layers, self._namespace.layout.plane_bytes, len(blocks.blocks))
        pull = self._client.pull(
            self._namespace.name,
            blocks.hashes,
            region=self._region,
            slots=blocks.blocks,
            timeout=timeout_s,
            chained=True,
            parent=blocks.parent,
            stages=stages,
        )
        return InPlaceLoad(pull, blocks, timeout_s, self._namespace.layout.block_bytes, layers)

    def _forget(self, blocks: set[int]) -> None:
        """They are written to anew: what was to be sealed there is not published any more."""
        for waiting in self._unsealed:
            waiting.drop(blocks)

    def _written(self) -> Any:
        """Something that says when this step's kernels have written; None: they have."""
        if not self._cuda:
            return None
        import torch

        event = torch.cuda.Event()
        event.record()
        return event

    def _seal_ready(self) -> None:
        """Seals what is complete, in order; what a kernel may still write to waits for a later step."""
        while self._unsealed and self._unsealed[0].written():
            ready = self._unsealed.pop(0)
            for run in ready.runs():
                # Before the call: where it fails by a deadline it may still be done, and the next write has to know.
                self._reserved.difference_update(run.blocks)
                self._client.seal(self._region, run.blocks, run.hashes, chained=True, parent=run.parent)


class _Unsealed:
    """Blocks whose kernels have been launched."""

    def __init__(self, blocks: GroupBlocks, event: Any) -> None:
        self._blocks, self._event = blocks, event
        self._dropped: set[int] = set()

    def written(self) -> bool:
        return self._event is None or self._event.query()

    def drop(self, blocks: set[int]) -> None:
        self._dropped |= blocks & set(self._blocks.blocks)

    def runs(self) -> list[GroupBlocks]:
        """What is left, cut where something was dropped: a chain's hashes follow each other."""
        runs: list[GroupBlocks] = []
        parent, at = self._blocks.parent, 0
        while at < len(self._blocks.blocks):
            end = at
            while end < len(self._blocks.blocks) and self._blocks.blocks[end] not in self._dropped:
                end += 1
            if end > at:
                blocks, hashes = self._blocks.blocks[at:end], self._blocks.hashes[at:end]
                runs.append(GroupBlocks(self._blocks.group, blocks, hashes, parent))
            parent, at = (self._blocks.hashes[end] if end < len(self._blocks.hashes) else None), end + 1
        return runs


class InPlaceLoad:
    """A pull into the engine's own blocks."""

    def __init__(
        self, pull: kvferry.Pull, blocks: GroupBlocks, timeout_s: float, block_bytes: int, layers: dict[str, int]
    ) -> None:
        self._pull, self._blocks, self._block_bytes, self._layers = pull, blocks, block_bytes, layers
        self._began = time.monotonic()
        self._longest_s = timeout_s + 2.0
        self.moved = Moved()

    def done(self) -> bool:
        return self._pull.done()

    def wait(self, timeout_s: float) -> bool:
        return self._pull.wait(timeout_s)

    def layer(self, name: str) -> None:
        stage = self._layers.get(name)
        if stage is None:
            # Of a layer without planes of its own (it shares an earlier one's) nothing is said by itself.
            self._pull.wait(self._longest_s)
        else:
            # Blocks that do not come are named by `finish`: the step's outcome does not count for them.
            self._pull.wait_stage(stage, self._longest_s)

    def finish(self) -> frozenset[int]:
        there = run_of(self._pull.outcomes())
        bad = set()
        for i, block in enumerate(self._blocks.blocks):
            outcome = there.get(i)
            if outcome is None or not outcome.ok:
                bad.add(block)
                self.moved.fail(outcome.kind.name.lower() if outcome is not None else "no_outcome")
        self.moved.blocks = len(self._blocks.blocks) - len(bad)
        self.moved.nbytes = self.moved.blocks * self._block_bytes
        self.moved.seconds = time.monotonic() - self._began
        return frozenset(bad)
