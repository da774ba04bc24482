"""Runs the scenarios against one or several releases of vLLM, and writes docs/engines-report.md.

    main.py --work DIR [--release PATH]... [--skip-installed] [--only NAME]... [--report FILE]

The installed release runs all scenarios; every PATH (an unpacked wheel of another release) those of EVERY_RELEASE. The report
has the last result of each.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import sys

import results
from processes import EngineError
from scenarios import EVERY_RELEASE, SCENARIOS, Run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the models, the engines' logs and results go there")
    parser.add_argument("--release", action="append", default=[], help="an unpacked wheel of another release")
    parser.add_argument("--skip-installed", action="store_true", help="only the releases that are named")
    parser.add_argument("--only", action="append", default=[], choices=list(SCENARIOS))
    parser.add_argument("--report", type=pathlib.Path)
    given = parser.parse_args()
    failed = ran = 0
    for path in [*([] if given.skip_installed else [None]), *given.release]:
        names = given.only or (list(SCENARIOS) if path is None else list(EVERY_RELEASE))
        logs = given.work / "logs" / f"{pathlib.Path(path).name if path else 'installed'}-{os.getpid()}"
        logs.mkdir(parents=True)
        run = Run(given.work / "models", logs, path)
        run.reference(range(6))
        scenarios = {name: functools.partial(body, run) for name, body in SCENARIOS.items()}
        for row in results.run("vLLM", run.version, names, scenarios, (EngineError,)):
            ran, failed = ran + 1, failed + (row.state != "passed")
            rows = results.remember(given.work / "results.json", row)
            if given.report is not None:
                given.report.write_text(results.report(rows))
    print(f"{ran - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
