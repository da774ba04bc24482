"""Runs the scenarios against the installed release of SGLang, and writes docs/engines-report.md.

    main.py --work DIR [--only NAME]... [--report FILE]
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import pathlib
import sys

import results
from scenarios import SCENARIOS, Run
from servers import ServerError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the models, the servers' logs and results go there")
    parser.add_argument("--only", action="append", default=[], choices=list(SCENARIOS))
    parser.add_argument("--report", type=pathlib.Path)
    given = parser.parse_args()
    logs = given.work / "logs" / f"sglang-{os.getpid()}"
    logs.mkdir(parents=True)
    run = Run(given.work / "models", logs)
    run.reference(range(6))
    scenarios = {name: functools.partial(body, run) for name, body in SCENARIOS.items()}
    failed = ran = 0
    release = importlib.metadata.version("sglang")
    for row in results.run("SGLang", release, given.only or list(SCENARIOS), scenarios, (ServerError, OSError)):
        ran, failed = ran + 1, failed + (row.state != "passed")
        rows = results.remember(given.work / "results.json", row)
        if given.report is not None:
            given.report.write_text(results.report(rows))
    print(f"{ran - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
