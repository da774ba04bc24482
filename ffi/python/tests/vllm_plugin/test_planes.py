"""Where blocks lie, from shapes and strides."""

from __future__ import annotations

import pytest
from kvferry.vllm.planes import LayoutError, Strip, strips


def test_a_block_that_is_one_run_is_one_plane() -> None:
    # [blocks, heads, tokens, 2 x head] of float32, row-major, at byte 100.
    assert strips((10, 2, 32, 128), (8192, 4096, 128, 1), 4, 100, 10) == [Strip(100, 32768, 32768)]


def test_the_order_of_what_is_within_a_block_does_not_matter() -> None:
    # The same, tokens outside heads.
    assert strips((10, 2, 32, 128), (8192, 128, 256, 1), 4, 0, 10) == [Strip(0, 32768, 32768)]


def test_keys_and_values_apart_are_two_planes() -> None:
    # [2, blocks, tokens, heads, head]
    size = 16 * 2 * 64
    got = strips((2, 10, 16, 2, 64), (10 * size, size, 128, 64, 1), 2, 0, 10)
    assert got == [Strip(0, size * 2, size * 2), Strip(10 * size * 2, size * 2, size * 2)]


def test_blocks_of_all_layers_side_by_side_are_a_stride_apart() -> None:
    assert strips((10, 2, 32, 128), (4 * 8192, 4096, 128, 1), 4, 8192 * 4, 10) == [Strip(32768, 131072, 32768)]


def test_kernel_blocks_are_joined_to_the_engines() -> None:
    # Each block of 64 tokens as two of 32.
    assert strips((20, 2, 32, 128), (8192, 4096, 128, 1), 4, 0, 10) == [Strip(0, 65536, 65536)]


def test_a_gap_within_a_block_makes_pieces() -> None:
    # A padded page: 3 heads used of 4, say.
    got = strips((4, 3, 8), (32, 10, 1), 1, 0, 4)
    assert got == [Strip(0, 32, 8), Strip(10, 32, 8), Strip(20, 32, 8)]


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((7, 2, 32), (64, 32, 1)), ((10, 4096), (0, 1)), ((10, 32), (16, 1))],
    ids=["no dimension counts blocks", "all blocks are one", "blocks overlap"],
)
def test_what_cannot_be_blocks_is_refused(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError):
        strips(shape, strides, 1, 0, 10)
