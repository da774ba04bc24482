"""All contenders in turn, round after round; medians, one table. See README.md."""

import argparse
import html
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of one contender's round, which takes about a second: it hangs.
BOUND_S = 180
# Why one contender has no figures: what it runs is not there, ends badly, hangs, or says what is no result.
FAILURES = (RuntimeError, OSError, ValueError, LookupError, subprocess.SubprocessError)


def isolated(command):
    """In a network namespace with nothing but loopback, where that is allowed."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    return ["unshare", "-n", *inside] if ISOLATE else list(command)


def can_isolate():
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    probe = ["unshare", "-n", "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def run(command):
    done = subprocess.run(isolated(command), capture_output=True, text=True, timeout=BOUND_S, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # Said first: such a run ends with an error too.
    if any(line.get("right") is False for line in lines):
        raise RuntimeError("WRONG BYTES")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:].strip()}")
    return lines


def python_round(interpreter, script, point, args, *more):
    block, batch = point
    command = [interpreter, str(HERE / script), "--block-bytes", str(block), "--batch", str(batch), *more]
    (line,) = run([*command, "--seconds", str(args.seconds)])
    return [line]


def kvferry_round(program, point, args):
    """kvferry, and the plain sockets that it measures beside itself."""
    block, batch = point
    command = [program, "bench", "transfer", "--transport", "tcp", "--rounds", "1", "--patience-s", "0", "--json"]
    shape = ["--block-bytes", str(block), "--batch", str(batch), "--slice-ms", str(int(args.seconds * 1000))]
    (line,) = run([*command, *shape])
    common = {"block_bytes": block, "batch": batch}
    ours = {
        **common,
        "name": "kvferry, tcp",
        "gb_per_s": line["gb_per_s"]["median"],
        "batch_p50_us": line["batch_us"]["p50"],
        "batch_p99_us": line["batch_us"]["p99"],
        # Engine and coordinator too: of the peers all is counted.
        "core_seconds_per_gb": sum(line[f"{who}_core_seconds_per_gb"] for who in ("owner", "reader", "other")),
    }
    beside = line["yardsticks"][0]
    sockets = {
        **common,
        "name": "plain sockets (Rust)",
        "gb_per_s": beside["gb_per_s"]["median"],
        "batch_p50_us": beside["batch_us"]["p50"],
        "batch_p99_us": beside["batch_us"]["p99"],
        "core_seconds_per_gb": beside["core_seconds_per_gb"],
    }
    return [sockets, ours]


def all_rounds(contenders, args):
    """What each contender measured, round by round, and who failed where. Who fails costs the others nothing; it is left
    out of the later rounds at that block size, which it might hang in as well."""
    rounds, failed = [], {}
    for number in range(args.rounds):
        for block in args.block_bytes:
            # Who comes first changes, so that nobody always meets a machine just disturbed.
            turn = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
            lines = []
            for name, contender in turn:
                if (block, name) in failed:
                    continue
                try:
                    lines += contender((block, args.batch))
                except FAILURES as error:
                    why = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
                    failed[block, name] = {"name": name, "block_bytes": block, "batch": args.batch, "failed": why}
                    print(f"round {number + 1}, {size(block)}: {name} FAILED: {why}", file=sys.stderr)
            rounds.append(lines)
            print(f"round {number + 1}, {size(block)}", file=sys.stderr)
    return rounds, list(failed.values())


def medians(rounds):
    """By point and name, with the ratio to plain sockets of the same side, round by round."""
    by_point = {}
    for lines in rounds:
        speeds = {(line["block_bytes"], line["batch"], line["name"]): line["gb_per_s"] for line in lines}
        for line in lines:
            point = (line["block_bytes"], line["batch"])
            side = "plain sockets (Rust)" if "Rust" in line["name"] or "kvferry" in line["name"] else "plain sockets (Python)"
            yardstick = speeds.get((*point, side))
            kept = by_point.setdefault(point, {}).setdefault(line["name"], [])
            kept.append({**line, "of_sockets": line["gb_per_s"] / yardstick if yardstick else None})
    table = []
    for point, names in sorted(by_point.items()):
        for name, lines in names.items():
            middle = lambda key, of=lines: statistics.median(line[key] for line in of)
            ratios = [line["of_sockets"] for line in lines if line["of_sockets"] is not None]
            speeds = [line["gb_per_s"] for line in lines]
            table.append(
                {
                    "name": name,
                    "block_bytes": point[0],
                    "batch": point[1],
                    "rounds": len(lines),
                    "gb_per_s": middle("gb_per_s"),
                    "gb_per_s_min": min(speeds),
                    "gb_per_s_max": max(speeds),
                    "of_sockets": statistics.median(ratios) if ratios else None,
                    "batch_p50_us": middle("batch_p50_us"),
                    "batch_p99_us": middle("batch_p99_us"),
                    "core_seconds_per_gb": middle("core_seconds_per_gb"),
                }
            )
    return table


def size(count):
    for unit, step in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count % step == 0:
            return f"{count // step} {unit}"
    return f"{count} B"


HEADINGS = ["blocks", "who", "GB/s", "worst .. best", "of sockets", "batch p50", "batch p99", "core-s/GB"]


def cells(line):
    ratio = line["of_sockets"]
    return [
        f"{line['batch']} x {size(line['block_bytes'])}",
        line["name"],
        f"{line['gb_per_s']:.2f}",
        f"{line['gb_per_s_min']:.2f} .. {line['gb_per_s_max']:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{line['batch_p50_us'] / 1e3:.2f} ms",
        f"{line['batch_p99_us'] / 1e3:.2f} ms",
        f"{line['core_seconds_per_gb']:.2f}",
    ]


def failure(line):
    """One line for people; the whole was said when it happened."""
    last = line["failed"].splitlines()[-1] if line["failed"] else "it does not say why"
    return f"FAILED: {line['name']}, {line['batch']} x {size(line['block_bytes'])}: {last}"


def text(table, failed):
    rows = [HEADINGS, *map(cells, table)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *map(failure, failed)])


STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;font-size:13px}th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #8884}"
    "th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}.bar{display:inline-block;height:.7em;background:#2563eb;vertical-align:baseline}"
    ".peer .bar{background:#d97706}.plain .bar{background:#64748b}"
)


def page(table, failed):
    """One page that needs nothing but a browser."""
    out = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>kvferry and its peers</title>',
        f"<style>{STYLE}</style></head><body><h1>kvferry and its peers, over TCP on loopback</h1>",
        "<p>In turn within the same rounds, medians. kvferry's rounds go the whole way: locate, read, validate, seal, ",
        "publish; the peers' are the bare read into addresses that are known. <em>Of sockets</em> is to plain sockets of ",
        "the same side: Python's for peers that are driven by Python, Rust's for kvferry. Every block was compared.</p>",
    ]
    out += [f"<p>{html.escape(failure(line))}</p>" for line in failed]
    for point in sorted({(line["block_bytes"], line["batch"]) for line in table}):
        lines = [line for line in table if (line["block_bytes"], line["batch"]) == point]
        most = max(line["gb_per_s"] for line in lines)
        out.append(f"<h2>{point[1]} x {size(point[0])}</h2><table><tr>")
        out += [f"<th>{heading}</th>" for heading in [*HEADINGS[1:], ""]]
        out.append("</tr>")
        for line in lines:
            kind = "plain" if "plain" in line["name"] else "ours" if "kvferry" in line["name"] else "peer"
            bar = f'<span class="bar" style="width:{160 * line["gb_per_s"] / most:.0f}px"></span>'
            row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(line)[1:])
            out.append(f'<tr class="{kind}">{row}<td style="text-align:left">{bar}</td></tr>')
        out.append("</table>")
    return "".join(out) + "</body></html>\n"


def main():
    numbers = lambda words: [int(word) for word in words.split(",")]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kvferry", help="the program; left out where it is not given")
    parser.add_argument("--mooncake", help="a Python that has mooncake-transfer-engine")
    parser.add_argument("--nixl", help="a Python that has nixl")
    parser.add_argument("--block-bytes", type=numbers, default=[64 << 10, 256 << 10, 1 << 20, 4 << 20])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of a table")
    parser.add_argument("--report", type=Path, help="write an HTML page")
    args = parser.parse_args()
    python = lambda *command: lambda point: python_round(command[0], command[1], point, args, *command[2:])
    contenders = [("plain sockets (Python)", python(sys.executable, "sockets.py"))]
    if args.kvferry:
        contenders.append(("kvferry, tcp", lambda point: kvferry_round(os.path.abspath(args.kvferry), point, args)))
    if args.mooncake:
        contenders.append(("Mooncake transfer engine, tcp", python(args.mooncake, "mooncake_te.py")))
    if args.nixl:
        contenders.append(("NIXL, UCX over tcp", python(args.nixl, "nixl_ucx.py")))
        contenders.append(("NIXL, UCX over tcp, tuned", python(args.nixl, "nixl_ucx.py", "--tuned")))
    rounds, failed = all_rounds(contenders, args)
    table = medians(rounds)
    print("\n".join(map(json.dumps, [*table, *failed])) if args.json else text(table, failed))
    if args.report:
        args.report.write_text(page(table, failed))
    sys.exit(1 if failed else 0)


ISOLATE = can_isolate()

if __name__ == "__main__":
    main()
