"""Settings and hand-offs: what comes from outside is checked."""

from __future__ import annotations

from typing import Any

import pytest
from kvferry.vllm.handoff import Handoff, announced, wanted
from kvferry.vllm.in_place import _Unsealed
from kvferry.vllm.metadata import GroupBlocks
from kvferry.vllm.settings import Settings


def test_settings_have_defaults_and_keep_what_is_given() -> None:
    assert Settings.parse({}) == Settings()
    assert Settings.parse({"memory": "pool", "load_timeout_s": 3}).load_timeout_s == 3
    assert Settings.parse({"locality": "x"}, frozenset({"locality"})) == Settings()


@pytest.mark.parametrize(
    "given",
    [
        {"sokcet": "/x"},
        {"memory": "gpu"},
        {"lookup_timeout_s": 0},
        {"lookup_timeout_s": "1"},
        {"load_timeout_s": 1e9},
        {"pool_bytes": -1},
        {"min_blocks": True},
        {"tenant": "a/b"},
        {"socket": 3},
    ],
)
def test_bad_settings_are_refused_by_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=name):
        Settings.parse(given)


def test_a_hand_off_survives_its_journey() -> None:
    told = Handoff("vllm/m/0", 64)
    assert announced(told.params()) == told
    assert wanted({"do_remote_decode": True}) and not wanted(told.params()) and not wanted(None)


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"kvferry": {"namespace": "n", "tokens": 1}},
        {"do_remote_prefill": True},
        {"do_remote_prefill": True, "kvferry": "n"},
        {"do_remote_prefill": True, "kvferry": {"namespace": 3, "tokens": 1}},
        {"do_remote_prefill": True, "kvferry": {"namespace": "n", "tokens": "many"}},
        {"do_remote_prefill": True, "kvferry": {"namespace": "n", "tokens": -1}},
    ],
)
def test_what_others_say_is_taken_only_in_the_right_words(params: Any) -> None:
    assert announced(params) is None


def test_blocks_written_anew_are_not_sealed_and_the_chain_is_cut_there() -> None:
    hashes = tuple(bytes([i]) * 8 for i in range(5))
    waiting = _Unsealed(GroupBlocks(0, (10, 11, 12, 13, 14), hashes, b"p" * 8), None)
    waiting.drop({12, 99})
    assert waiting.runs() == [
        GroupBlocks(0, (10, 11), hashes[:2], b"p" * 8),
        GroupBlocks(0, (13, 14), hashes[3:], hashes[2]),
    ]
    waiting.drop({10, 11, 13, 14})
    assert waiting.runs() == []
