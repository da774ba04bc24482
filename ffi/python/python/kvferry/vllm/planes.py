"""Where the blocks of an engine's KV cache lie, told from its tensors' shapes and strides. A block is opaque bytes here:
what is key, value, head or token in it does not matter, as long as all engines of a namespace lay it out alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# An agent's bound on the pieces of a block (layers x (K, V), say).
MAX_PLANES = 1024


class LayoutError(ValueError):
    """These tensors cannot be taken for blocks: the text says which one, and why."""


@dataclass(frozen=True)
class Strip:
    """One plane: block b is `len` bytes at byte `base + b*stride` of a storage."""

    base: int
    stride: int
    len: int


@dataclass(frozen=True)
class Part:
    """One plane of a layer: `bytes[b]` is its piece of block b, as `uint8` of shape [blocks, plane_bytes], a view."""

    layer: str
    strip: Strip
    storage: int
    """Address of the storage's first byte."""
    bytes: torch.Tensor


def strips(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, offset: int, blocks: int) -> list[Strip]:
    """The planes of a tensor of `blocks` blocks. `shape` and `strides` are in elements, `offset` in bytes.

    The blocks are one dimension of it, or several in a row where a block is cut into kernel blocks: [blocks*k, ...].
    """
    axis = _block_axis(shape, blocks)
    per_block = shape[axis] // blocks
    stride = strides[axis] * per_block
    inner = [(strides[axis], per_block)] + [(s, n) for i, (s, n) in enumerate(zip(strides, shape)) if i != axis]
    inner = sorted(((s, n) for s, n in inner if n > 1), reverse=True)
    if any(s <= 0 for s, _ in inner) or (blocks > 1 and stride <= 0):
        raise LayoutError(f"a tensor of shape {shape} has the strides {strides}: some elements overlap")
    run = 1
    while inner and inner[-1][0] == run:
        run *= inner.pop()[1]
    bases = [0]
    for step, count in inner:
        bases = [base + i * step for base in bases for i in range(count)]
        if len(bases) > MAX_PLANES:
            raise LayoutError(f"a block of shape {shape} with strides {strides} falls into more than {MAX_PLANES} pieces")
    if blocks > 1 and run > stride and len(bases) == 1:
        raise LayoutError(f"blocks of a tensor of shape {shape} with strides {strides} overlap")
    return [Strip(offset + base * itemsize, stride * itemsize, run * itemsize) for base in bases]


def _block_axis(shape: tuple[int, ...], blocks: int) -> int:
    """Which dimension counts blocks: the outermost that is exactly `blocks`, else the first that is a multiple of it."""
    for axis, size in enumerate(shape):
        if size == blocks:
            return axis
    if shape and blocks and shape[0] % blocks == 0:
        return 0
    raise LayoutError(f"no dimension of a KV cache of shape {shape} counts its {blocks} blocks")


def parts_of(layers: Iterable[tuple[str, torch.Tensor]], blocks: int) -> list[Part]:
    """The planes of a group's layers, in order, all of one length. Layers that share memory are taken once."""
    import torch

    found: list[Part] = []
    seen: set[tuple[int, int]] = set()
    for name, tensor in layers:
        storage = tensor.untyped_storage()
        raw = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        offset = tensor.storage_offset() * tensor.element_size()
        for strip in strips(tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size(), offset, blocks):
            if (storage.data_ptr(), strip.base) in seen:
                continue
            seen.add((storage.data_ptr(), strip.base))
            view = raw.as_strided((blocks, strip.len), (strip.stride, 1), strip.base)
            found.append(Part(name, strip, storage.data_ptr(), view))
    lengths = {part.strip.len for part in found}
    if not found:
        raise LayoutError("there are no KV cache tensors")
    if len(lengths) > 1:
        raise LayoutError(f"the layers' pieces of a block have several lengths ({sorted(lengths)} bytes)")
    if len(found) > MAX_PLANES:
        raise LayoutError(f"a block falls into {len(found)} pieces, more than {MAX_PLANES}")
    return found
