"""One contender that fails costs itself. In `./test` by way of tests/python/run."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import side_by_side  # noqa: E402

SOCKETS = "plain sockets (Python)"


def result(name, block):
    figures = {"gb_per_s": 2.0, "batch_p50_us": 1.0, "batch_p99_us": 2.0, "core_seconds_per_gb": 0.5}
    return {"name": name, "block_bytes": block, "batch": 4, **figures}


def good(name):
    return name, lambda point: [result(name, point[0])]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("reader ended with 1:\ncannot register"), "cannot register"),
        (subprocess.TimeoutExpired(["reader"], 180), "timed out"),
        (FileNotFoundError("mc/bin/python"), "mc/bin/python"),
        (KeyError("gb_per_s"), "gb_per_s"),
    ],
)
def test_who_fails_is_named_with_the_reason_and_the_others_go_on(error, why):
    asked = []

    def bad(point):
        asked.append(point)
        if point[0] == 1024:
            raise error
        return [result("bad", point[0])]

    args = Namespace(rounds=3, block_bytes=[1024, 2048], batch=4)
    rounds, failed = side_by_side.all_rounds([good(SOCKETS), ("bad", bad), good("peer")], args)
    table = side_by_side.medians(rounds)
    measured = {(line["name"], line["block_bytes"]): line["rounds"] for line in table}
    everywhere = {(name, block): 3 for name in (SOCKETS, "peer") for block in (1024, 2048)}
    assert measured == {**everywhere, ("bad", 2048): 3}
    assert asked == [(1024, 4), (2048, 4), (2048, 4), (2048, 4)]
    assert [(line["name"], line["block_bytes"]) for line in failed] == [("bad", 1024)]
    for said in (side_by_side.text(table, failed), side_by_side.page(table, failed)):
        assert "FAILED: bad, 4 x 1 KiB" in said
        assert why in said


def test_wrong_bytes_are_called_that(monkeypatch):
    said = json.dumps({**result("peer", 1024), "right": False})
    monkeypatch.setattr(side_by_side, "ISOLATE", False)
    with pytest.raises(RuntimeError, match="WRONG BYTES"):
        side_by_side.run([sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"])


def test_without_any_figures_the_failures_are_still_said():
    args = Namespace(rounds=1, block_bytes=[1024], batch=4)
    rounds, failed = side_by_side.all_rounds([("bad", lambda _: side_by_side.run(["/nowhere"]))], args)
    table = side_by_side.medians(rounds)
    assert table == []
    assert "FAILED: bad" in side_by_side.text(table, failed)
    assert "FAILED: bad" in side_by_side.page(table, failed)
