"""What a run of the comparison says: medians, ratios, tables. Nothing here measures or imports a runtime."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]  # one row of the comparison, as compare.py writes it to JSON


def median_speed(result: Result, label: str) -> float | None:
    """Work per second of one side; None where it could not run. For `open`, openings per second."""
    seconds = result["sides"].get(label, {}).get("seconds")
    return result["work"] / statistics.median(seconds) if seconds else None


def best_peer(result: Result) -> str | None:
    """The quickest side that is not halfbyte."""
    peers = {
        label: speed
        for label in result["sides"]
        if not label.startswith("halfbyte") and (speed := median_speed(result, label)) is not None
    }
    return max(peers, key=lambda label: peers[label], default=None)


def ratio(result: Result, ours: str, theirs: str) -> float | None:
    """How many times as quick `ours` is as `theirs`: the ratio of the medians."""
    mine, other = median_speed(result, ours), median_speed(result, theirs)
    return mine / other if mine is not None and other is not None else None


def shown(result: Result, label: str) -> str:
    """A median in the unit of the row."""
    speed = median_speed(result, label)
    if speed is None:
        return "-"
    if result["unit"] == "ms":
        milliseconds = result["work"] / speed * 1e3
        return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"
    if result["unit"] == "s":
        return f"{result['work'] / speed:.2f} s"
    return f"{speed:.0f} tok/s" if speed >= 100 else f"{speed:.1f} tok/s"


def spread(result: Result, label: str) -> str:
    """Half of the distance between the slowest and the quickest round, relative to the median."""
    seconds = result["sides"][label].get("seconds")
    if not seconds or len(seconds) < 2:
        return "-"
    return f"±{(max(seconds) - min(seconds)) / 2 / statistics.median(seconds):.0%}"


def verdicts(result: Result) -> list[dict[str, Any]]:
    """Every target of a row: {ours, theirs, ratio, target, met}; ratio and met are None where a side is missing."""
    out = []
    for target in result["targets"]:
        theirs = best_peer(result) if target["theirs"] == "best" else target["theirs"]
        reached = ratio(result, target["ours"], theirs) if theirs else None
        met = None if reached is None else reached >= target["ratio"]
        out.append({"ours": target["ours"], "theirs": theirs, "ratio": reached, "target": target["ratio"], "met": met})
    return out


def of_readable(result: Result, label: str) -> float | None:
    """The share of the readable bandwidth that a side's weights pass at, where one token after another is decoded."""
    speed, side = median_speed(result, label), result["sides"].get(label, {})
    if speed is None or not side.get("bytes"):
        return None
    share: float = speed / result["passes_work"] * side["bytes"] * 1e-9 / result["roofs"]["read_gb_per_s"]
    return share


def limits(result: Result) -> list[tuple[str, str, str, bool | None]]:
    """Every limit of a row: (side, what it reached, what it must reach, met)."""
    out = []
    for limit in result["limits"]:
        label, value = limit["ours"], limit["value"]
        side = result["sides"].get(label, {})
        if limit["what"] == "of readable":
            reached, at_least = of_readable(result, label), True
            words = [f"{number:.0%} of readable" for number in (reached or 0.0, value)]
        elif limit["what"] == "peak MB":
            reached, at_least = side.get("peak_mb"), False
            words = [f"{number:.0f} MB" for number in (reached or 0.0, value)]
        else:
            reached, at_least = statistics.median(side["seconds"]) if side.get("seconds") else None, False
            words = [f"{number:.2f} s" for number in (reached or 0.0, value)]
        if reached is None:
            out.append((label, "-", words[1], None))
        else:
            out.append((label, words[0], words[1], reached >= value if at_least else reached <= value))
    return out


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> str:
    """A Markdown table; columns from `right` on are aligned to the right."""
    marks = ["---" if column < right else "---:" for column in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_MET = {True: "yes", False: "no", None: "not run"}


def summary(results: Sequence[Result]) -> str:
    """One line for every target."""
    rows = []
    for result in results:
        for verdict in verdicts(result):
            theirs = verdict["theirs"] or "-"
            rows.append(
                (
                    result["title"],
                    verdict["ours"],
                    shown(result, verdict["ours"]),
                    theirs,
                    shown(result, theirs),
                    "-" if verdict["ratio"] is None else f"{verdict['ratio']:.2f}",
                    f"{verdict['target']:.2f}",
                    _MET[verdict["met"]],
                )
            )
        rows += [
            (result["title"], label, reached, "-", "-", "-", wanted, _MET[met])
            for label, reached, wanted, met in limits(result)
        ]
    return table(("task", "halfbyte", "speed", "yardstick", "speed", "ratio", "target", "met"), rows, right=8)


def detail(result: Result) -> str:
    """Every side of a row: speed, roofs, quality, memory; and what could not run, with its reason."""
    roofs, rows, failed = result["roofs"], [], []
    for label, side in result["sides"].items():
        if "error" in side:
            failed.append(f"{label} did not run: {side['error']}.")
            continue
        speed = median_speed(result, label)
        share = of_readable(result, label) if result["task"] == "decode" else None
        gflops = speed / result["work"] * result["gflop"] if speed and result["gflop"] else None
        quality = side.get("quality", {})
        perplexity = "{perplexity:.3f} ({perplexity_float64:.3f})".format(**quality) if "perplexity" in quality else "-"
        rows.append(
            (
                label,
                shown(result, label),
                spread(result, label),
                f"{share * roofs['read_gb_per_s']:.1f} ({share:.0%})" if share else "-",
                f"{gflops:.0f} ({gflops / roofs['int16']:.0%} of int16)" if gflops else "-",
                f"{quality['error']:.1e}" if "error" in quality else "-",
                perplexity,
                f"{side['peak_mb']:.0f}",
                f"{side['load_s']:.2f}",
            )
        )
    header = (
        "side",
        "speed",
        "spread",
        "GB/s of weights (of readable)",
        "GFLOP/s",
        "error",
        "perplexity (float64)",
        "peak MB",
        "load s",
    )
    conditions = (
        f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}, {result['rounds']} rounds; in this run "
        f"{roofs['read_gb_per_s']:.1f} GB/s can be read, and {roofs['float32']:.0f} GFLOP/s be done in float32, "
        f"{roofs['bfloat16']:.0f} in bfloat16, {roofs['int16']:.0f} in int16, {roofs['int8']:.0f} in int8."
    )
    parts = [f"### {result['title']}", conditions, table(header, rows), *failed]
    return "\n\n".join(parts)


def page(run: dict[str, Any]) -> str:
    """The generated part of docs/performance.md."""
    conditions = table(("", ""), [(name, str(value)) for name, value in run["conditions"].items()], right=2)
    parts = [
        conditions,
        "![Speed of halfbyte and of the yardsticks](performance.svg)",
        "Ratios are of medians; a ratio above 1 says that halfbyte is quicker.",
        summary(run["results"]),
        *(detail(result) for result in run["results"]),
    ]
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- begin: tools/bench/compare.py -->", "<!-- end: tools/bench/compare.py -->"


def replaced(text: str, generated: str) -> str:
    """A page with the part between the two marks replaced. Raises ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{generated.strip()}\n\n{END}{after}"
