"""How a load is cut into stages; no engine and no agent."""

from __future__ import annotations

import pytest

from kvferry.vllm.in_place import MAX_PARTS, STAGE_BYTES, stages_of

# K and V of 80 layers.
LAYERS = [f"layer.{i // 2}" for i in range(160)]


def test_a_layer_is_a_stage_where_it_is_worth_one() -> None:
    stages, last = stages_of(LAYERS, STAGE_BYTES, 1)
    assert stages == [2] * 80
    assert [last[f"layer.{i}"] for i in range(80)] == list(range(1, 81))


def test_small_layers_come_together() -> None:
    stages, last = stages_of(LAYERS, STAGE_BYTES // 64, 8)
    assert stages == [8] * 20 and last["layer.3"] == 1 and last["layer.4"] == 2
    # A single block of a small model: all at once.
    assert stages_of(LAYERS, 64, 1) == ([160], {f"layer.{i}": 1 for i in range(80)})


@pytest.mark.parametrize("blocks", [1, 7, 500, 1639, 5000, 65_536])
@pytest.mark.parametrize("plane_bytes", [1, 4096, 1 << 20])
def test_stages_are_all_planes_and_within_the_agents_bound(blocks: int, plane_bytes: int) -> None:
    stages, last = stages_of(LAYERS, plane_bytes, blocks)
    assert sum(stages) == 160 and min(stages) > 0
    assert len(stages) * blocks <= MAX_PARTS
    assert sorted(set(last.values())) == list(range(1, len(stages) + 1))


def test_without_layers_there_are_none() -> None:
    assert stages_of([], 4096, 3) == ([], {})
