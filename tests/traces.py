"""What every trace must keep to, and its events for those who look further."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The whole file; it must be JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def spans(trace: dict[str, Any], row: str = "") -> list[dict[str, Any]]:
    """Events that last, on all rows or on those whose name begins so; `row` and `end` are put in."""
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    found = [e | {"row": named[e["pid"], e["tid"]], "end": e["ts"] + e["dur"]}
             for e in trace["traceEvents"] if e["ph"] == "X"]
    return [e for e in found if e["row"].startswith(row)]


def wrong(trace: dict[str, Any], ranks: int) -> list[str]:
    """What readers of the format would stumble over."""
    events = trace["traceEvents"]
    problems = [f"lacks a key: {e}" for e in events if not {"name", "ph", "ts", "pid", "tid"} <= e.keys()]
    problems += [f"lasts {e['dur']}: {e}" for e in events if e["ph"] == "X" and e["dur"] < 0]
    named = {e["pid"] for e in events if e["name"] == "process_name"}
    if not named == {e["pid"] for e in spans(trace)} == set(range(ranks)):
        problems.append(f"{ranks} ranks, but names of {named}")
    rows = defaultdict(list)
    for e in spans(trace):
        rows[e["pid"], e["row"]].append(e)
    for where, found in rows.items():
        problems += [f"{where}: {a} and {b} overlap" for a, b in _overlaps(found)]
    return problems


def _overlaps(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of one row that share some time, with neither inside the other."""
    open_ones: list[dict[str, Any]] = []
    pairs = []
    for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
        while open_ones and open_ones[-1]["end"] <= event["ts"] + 1e-4:  # floats of microseconds
            open_ones.pop()
        if open_ones and event["end"] > open_ones[-1]["end"] + 1e-4:
            pairs.append((open_ones[-1], event))
        open_ones.append(event)
    return pairs
