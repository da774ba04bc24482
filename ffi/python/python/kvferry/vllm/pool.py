"""Sharing through the agent's pool: a block is copied out when it is complete, and in when it was pulled.

The way for memory that no other process can map: the engine's private host memory, GPU memory that cannot be exported, and models
of several KV cache groups, whose blocks overlay each other. The pool outlives the engine's own cache, and the engine.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

import kvferry

from .medium import Moved, run_of
from .metadata import GroupBlocks
from .planes import Part

if TYPE_CHECKING:
    import torch

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.pool")

# Blocks that are reserved, copied and sealed in one go: reservations take room from what others publish.
PUBLISH_BATCH = 32
# A pulled block stays in the pool this much longer than the load may take: until it was copied out.
PIN_SLACK_S = 30.0


class PoolMedium:
    """See `Medium`. One namespace's pool."""

    def __init__(self, client: kvferry.Client, namespace: kvferry.Namespace, parts: list[Part], pool_bytes: int) -> None:
        self._client, self._namespace = client, namespace
        self._copy = BlockCopy(parts)
        self._pool = client.register_pool(namespace, pool_bytes)

    def before_writes(self, blocks: set[int]) -> None:
        """Nothing: peers read copies."""

    def publish(self, blocks: GroupBlocks, *, pin_s: float | None) -> Moved:
        moved, began, parent = Moved(), time.monotonic(), blocks.parent
        for at in range(0, len(blocks.blocks), PUBLISH_BATCH):
            ids, hashes = blocks.blocks[at : at + PUBLISH_BATCH], blocks.hashes[at : at + PUBLISH_BATCH]
            try:
                with self._pool.write(len(ids)) as reservation:
                    for i, block in enumerate(ids):
                        self._copy.out(block, reservation.view(i))
                    sealed = reservation.seal(hashes, chained=True, parent=parent)
            except kvferry.PoolFullError:
                moved.dropped += len(blocks.blocks) - at
                break
            moved.blocks += len(ids) - len(sealed.duplicates)
            parent = hashes[-1]
        moved.nbytes = moved.blocks * self._namespace.layout.block_bytes
        moved.seconds = time.monotonic() - began
        if pin_s is not None:
            # Not waited for: it saves the decoding engine's work, and nothing rests on it.
            self._client.background.pin(self._namespace.name, blocks.hashes, ttl=pin_s)
        return moved

    def load(self, blocks: GroupBlocks, timeout_s: float) -> PoolLoad:
        pull = self._client.pull(
            self._namespace.name,
            blocks.hashes,
            timeout=timeout_s,
            pin_ttl=timeout_s + PIN_SLACK_S,
            chained=True,
            parent=blocks.parent,
        )
        return PoolLoad(self._client, pull, blocks, self._copy, timeout_s)


class PoolLoad:
    """A pull into the pool, and then copies from there, pinned meanwhile."""

    def __init__(
        self, client: kvferry.Client, pull: kvferry.Pull, blocks: GroupBlocks, copy: BlockCopy, timeout_s: float
    ) -> None:
        self._client, self._pull, self._blocks, self._copy = client, pull, blocks, copy
        self._began = time.monotonic()
        # The library ends a pull two seconds after its timeout where the agent itself has stopped.
        self._longest_s = timeout_s + 2.0
        self._result: kvferry.PullResult | None = None
        self._bad: set[int] = set()
        self._read = False
        self._layers: set[str] = set()
        self.moved = Moved()

    def done(self) -> bool:
        return self._pull.done()

    def wait(self, timeout_s: float) -> bool:
        return self._pull.wait(timeout_s)

    def layer(self, name: str) -> None:
        self._pull.wait(self._longest_s)
        self._take()
        if name not in self._layers:
            self._layers.add(name)
            self._into([name])

    def finish(self) -> frozenset[int]:
        self._take()
        self._into([name for name in self._copy.layers if name not in self._layers])
        self._layers.update(self._copy.layers)
        self._let_go()
        self.moved.blocks = len(self._blocks.blocks) - len(self._bad)
        self.moved.seconds = time.monotonic() - self._began
        return frozenset(self._blocks.blocks[i] for i in self._bad)

    def _take(self) -> None:
        """The pull's outcomes, once."""
        if self._read:
            return
        self._read = True
        everything = set(range(len(self._blocks.blocks)))
        try:
            self._result = self._pull.result(0.0)
        except kvferry.KvferryError as error:
            self._bad = everything
            self.moved.fail(error.status, len(everything))
            return
        there = run_of(list(self._result.outcomes))
        for i in everything:
            outcome = there.get(i)
            if outcome is None or not outcome.ok:
                self._bad.add(i)
                self.moved.fail(outcome.kind.name.lower() if outcome is not None else "no_outcome")
        self.moved.nbytes = self._result.bytes

    def _into(self, layers: list[str]) -> None:
        if self._result is None or self._result.pin is None or not layers:
            return
        for i, block in enumerate(self._blocks.blocks):
            if i in self._bad:
                continue
            try:
                self._copy.into(block, self._result.pin.view(i), layers)
            except kvferry.KvferryError as error:
                # Its pin is over, say; or it lies in the memory of another engine beside this agent, in planes.
                self._bad.add(i)
                self.moved.fail(error.status)

    def _let_go(self) -> None:
        """Whether what was copied is what was pulled, and the pin's end."""
        pin = self._result.pin if self._result is not None else None
        if pin is None:
            return
        try:
            valid = pin.valid()
        except kvferry.KvferryError as error:
            valid = False
            logger.warning("kvferry: %s", error)
        if not valid:
            # None of it is served.
            self.moved.fail("overwritten", len(self._blocks.blocks) - len(self._bad))
            self._bad = set(range(len(self._blocks.blocks)))
        try:
            pin.release()
        except kvferry.KvferryError as error:
            # It ends by itself when its time is over, or with the connection.
            logger.warning("kvferry: a pin was not released: %s", error)


class BlockCopy:
    """Copies between a block's planes in the engine's tensors and its contiguous bytes in a pool's slot."""

    def __init__(self, parts: list[Part]) -> None:
        self._bytes = parts[0].strip.len
        self._on_host = parts[0].bytes.device.type == "cpu"
        # Of host memory numpy views: their copies cost a tenth of a tensor's.
        self._planes: list[np.ndarray | torch.Tensor] = [part.bytes.numpy() if self._on_host else part.bytes for part in parts]
        self.layers: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            self.layers.setdefault(part.layer, []).append(number)

    def out(self, block: int, slot: memoryview) -> None:
        """The engine's block to a pool's slot."""
        to = np.frombuffer(slot, np.uint8).reshape(len(self._planes), self._bytes)
        for number, plane in enumerate(self._planes):
            to[number] = plane[block] if self._on_host else plane[block].cpu().numpy()
        del to

    def into(self, block: int, slot: memoryview, layers: list[str]) -> None:
        """These layers of a pool's slot to the engine's block."""
        source = np.frombuffer(slot, np.uint8).reshape(len(self._planes), self._bytes)
        for layer in layers:
            for number in self.layers.get(layer, ()):
                plane = self._planes[number]
                if self._on_host:
                    plane[block] = source[number]
                else:
                    import torch

                    plane[block].copy_(torch.frombuffer(bytearray(source[number]), dtype=torch.uint8))
        del source
