"""What became of each scenario, and docs/engines-report.md made of it."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import pathlib
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import kvferry

HERE = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """The last result of one scenario with one release of one engine."""

    engine: str
    release: str
    scenario: str
    order: int
    """Of the scenario among its engine's."""
    state: str
    words: str
    commit: str


def run(
    engine: str, release: str, names: list[str], scenarios: dict[str, Callable[[], str]], expected: tuple[type[Exception], ...]
) -> Iterator[Row]:
    """Runs these scenarios, one after the other. `expected`: how one fails; anything else is a mistake of the harness."""
    print(f"== {engine} {release}", flush=True)
    order = list(scenarios)
    for name in names:
        began = time.monotonic()
        try:
            words, state = scenarios[name](), "passed"
        except (AssertionError, kvferry.KvferryError, *expected) as error:
            traceback.print_exc()
            words, state = (str(error).splitlines() or [repr(error)])[0][:200], "FAILED"
        print(f"{state:6} {name}: {words} ({time.monotonic() - began:.0f} s)", flush=True)
        yield Row(engine, release, name, order.index(name), state, words, commit())


def commit() -> str:
    """What was run; a plus behind it: and changes that are not committed."""
    changed = git("status", "--porcelain", "--", "../../..", ":!/docs")
    return git("rev-parse", "--short=9", "HEAD") + ("+" if changed else "")


def git(*words: str) -> str:
    said = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def remember(path: pathlib.Path, row: Row) -> list[Row]:
    """All rows of a work folder, the newest release first, this one among them."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        rows = [Row(**old) for old in (json.loads(text) if text else [])]
        same = (row.engine, row.release, row.scenario)
        rows = [old for old in rows if (old.engine, old.release, old.scenario) != same] + [row]
        rows.sort(key=lambda it: (it.engine != "vLLM", [-int(part) for part in it.release.split(".")[:3]], it.order))
        file.truncate(0)
        file.write(json.dumps([asdict(it) for it in rows], indent=1))
    return rows


def report(rows: list[Row]) -> str:
    """The page."""
    import torch

    releases: dict[str, list[str]] = {}
    for row in rows:
        of = releases.setdefault(row.engine, [])
        if row.release not in of:
            of.append(row.release)
    engines = "; ".join(f"{engine} {', '.join(of)}" for engine, of in releases.items())
    lines = [
        "# Real engines",
        "",
        "What `tests/engines/run` said; written by it, not by hand. Real vLLM engines and real SGLang servers on processors, tiny",
        "random-weight models of 4 layers in float32 (a Llama; for sliding windows a Gemma and a Mellum), prompts of 600 token ids,",
        "blocks of 32 tokens, greedy. Every answer is compared with that of an engine without kvferry: the tokens must be identical,",
        "and the number of cached prompt tokens what is said here.",
        "",
        f"- {datetime.date.today().isoformat()}, {platform.machine()}, {len(os.sched_getaffinity(0))} processors, no GPU",
        f"- {engines}; torch {torch.__version__}, Python {platform.python_version()}, kvferry {kvferry.__version__}",
        f"- {sum(row.state == 'passed' for row in rows)} of {len(rows)} passed",
        "",
        "| engine | scenario | | what was seen | commit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {row.engine} {row.release} | {row.scenario} | {row.state} | {row.words} | {row.commit} |")
    lines += [
        "",
        "The scenarios are in `tests/engines/{vllm,sglang}/scenarios.py`, each with a line that says what it does. `control` puts",
        "zeros under the prompt's hashes and sees other tokens: what is loaded is really used. Where an owner is killed, its agent",
        "is frozen once its blocks are known, and killed when the reader's pull is under way. vLLM 0.28 allocates each layer by",
        "itself, which cannot be shared in place: with `auto` its blocks go through the pool. Each row is the last run of its",
        "scenario; the commit is that of the tree when it ended, a plus: and changes that were not committed.",
        "",
    ]
    return "\n".join(lines)
