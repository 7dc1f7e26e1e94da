"""What the records of all processes of a test run say together; tests/matrix.py makes the runs.

A process is a rank, also where it is the only one. tests/conftest.py writes the records.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One row of the table. `mpi` is empty for tests in one process."""

    what: str
    mpi: str
    ranks: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.mpi}-{self.ranks}" if self.mpi else self.what

    @property
    def title(self) -> str:
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        return f"MPI tests, {self.mpi}, {ranks}" if self.mpi else f"{self.what} tests"


@dataclass
class Rank:
    """What one process recorded: the tests that it knew, how they ended, and the one that it was in."""

    number: int
    pid: int = 0
    size: int = 1
    collected: list[str] | None = None
    ended: dict[str, dict] = field(default_factory=dict)
    current: str = ""


@dataclass
class Outcome:
    """How a run ended: failures and skips as (test, message)."""

    run: Run
    seconds: float
    passed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    """tests that did not come to their end, because another failed"""


def read(folder: Path, number: int) -> Rank:
    """The record of one rank, as far as it came."""
    rank, path = Rank(number), folder / f"rank-{number}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by its end
            continue
        rank.pid = record.get("pid", rank.pid)
        rank.size, rank.collected = record.get("size", rank.size), record.get("collected", rank.collected)
        rank.current = "" if "finished" in record else record.get("began", rank.current)
        if "ended" in record:
            before = rank.ended.get(record["ended"])
            if not before or before["outcome"] == "passed" or record["outcome"] == "failed":
                rank.ended[record["ended"]] = record
    return rank


def judge(run: Run, code: int | str, limit: float, ranks: list[Rank], folder: Path, seconds: float) -> Outcome:
    """What the records of all ranks, and the exit code, say together."""
    out = Outcome(run, seconds)
    strict = os.environ.get("CI", "").lower() in ("true", "1")
    for test in dict.fromkeys(name for rank in ranks for name in [*(rank.collected or ()), *rank.ended]):
        ends = {rank.number: rank.ended[test] for rank in ranks if test in rank.ended}
        kinds = [end["outcome"] for end in ends.values()]
        if "failed" in kinds:
            out.failed.append((test, _message(run, {n: e for n, e in ends.items() if e["outcome"] == "failed"})))
        elif len(kinds) < run.ranks:
            out.left += 1
        elif set(kinds) == {"skipped"}:
            why = next(iter(ends.values()))["why"]
            (out.failed if strict and why.startswith("not installed") else out.skipped).append((test, why))
        else:
            out.passed += 1
    trouble = _trouble(run, code, ranks, out)
    if trouble:
        out.failed.append(("the run as a whole", "\n".join([*trouble, *where(ranks, folder), *_tails(ranks, folder)])))
    return out


def _message(run: Run, ends: dict[int, dict]) -> str:
    """Who says what, then the whole story of the first."""
    reasons: dict[str, list[int]] = {}
    for number, end in ends.items():
        reasons.setdefault(end["why"].strip().partition("\n")[0], []).append(number)
    said = [f"{who(numbers)}: {why}" if run.mpi else why for why, numbers in reasons.items()]
    text = next(iter(ends.values()))["text"].strip()
    return "\n".join([*said, text] if text and text not in reasons else said)


def _trouble(run: Run, code: int | str, ranks: list[Rank], out: Outcome) -> list[str]:
    """What is wrong beside failed tests."""
    found = [code] if isinstance(code, str) else []
    alone = [rank.number for rank in ranks if rank.collected is not None and rank.size != run.ranks]
    if alone:
        found.append(f"{who(alone)}: MPI has {ranks[alone[0]].size} ranks where mpiexec started {run.ranks}; "
                     "is that mpiexec of the same MPI as the library?")
    lists = {rank.number: rank.collected for rank in ranks if rank.collected is not None}
    first = next(iter(lists.values()), [])
    other = [number for number, tests in lists.items() if tests != first]
    if other:
        odd = sorted(set(first) ^ set(lists[other[0]])) or ["(the same in another order)"]
        found.append(f"{who(other)} collected other tests than rank {next(iter(lists))}: {', '.join(odd[:5])}")
    if not found and code != 0 and not out.failed:
        found.append(f"ended with code {code}")
    if not found and code == 0 and (out.left or len(lists) < run.ranks):
        found.append(f"ended with code 0, but {out.left} tests have no outcome")
    return found


def where(ranks: list[Rank], folder: Path) -> list[str]:
    """The last test that each rank began, and where in it each hangs, for those that came to no end."""
    places: dict[tuple[str, ...], list[int]] = {}
    for rank in ranks:
        if rank.collected is None:
            place = ["began no test"]
        elif rank.current:
            place = [f"in {rank.current}", *_stack(folder / f"rank-{rank.number}.stack")]
        else:
            place = [f"ended {list(rank.ended)[-1]}" if rank.ended else "had no test"]
        places.setdefault(tuple(place), []).append(rank.number)
    return [line for (first, *rest), numbers in places.items()
            for line in (f"{who(numbers)}: {first}", *(f"    {frame}" for frame in rest))]


def _stack(path: Path) -> list[str]:
    """The innermost frames of the main thread, up to pytest's."""
    frames = path.read_text().rpartition("most recent call first")[2].splitlines()[1:] if path.exists() else []
    end = next((n for n, frame in enumerate(frames) if "/_pytest/" in frame), len(frames))
    return [frame.strip().replace(f"{Path.cwd()}{os.sep}", "") for frame in frames[:end]][:8]


def _tails(ranks: list[Rank], folder: Path) -> list[str]:
    """The end of what ranks without the terminal printed, each text once."""
    texts: dict[str, list[int]] = {}
    for rank in ranks[1:]:
        path = folder / f"rank-{rank.number}.txt"
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:]).strip() if path.exists() else ""
        if tail.strip(".sFE\n"):
            texts.setdefault(tail, []).append(rank.number)
    return [f"--- printed by {who(numbers)}\n{text}" for text, numbers in texts.items()][:4]


def who(numbers: list[int]) -> str:
    """Ranks in few words: rank 3; ranks 0, 2-5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return f"rank{'s' * (len(numbers) > 1)} " + ", ".join("-".join(map(str, span)) for span in spans)


def report(outcomes: list[Outcome]) -> int:
    """Prints the table, each skip, each failure and the sum; returns the exit code."""
    table(outcomes)
    for out in outcomes:
        if out.skipped:
            print(f"\nskipped, {out.run.title}:")
            print("\n".join(f"  {test}: {why}" for test, why in out.skipped))
    for out in outcomes:
        for test, text in out.failed:
            print(f"\nFAILED, {out.run.title}: {test}\n" + "\n".join(f"  {line}" for line in text.splitlines()))
        if out.left and out.failed:
            print(f"\n{out.run.title}: {out.left} tests did not come to their end")
    passed = sum(out.passed for out in outcomes)
    failed, skipped = (sum(len(getattr(out, kind)) for out in outcomes) for kind in ("failed", "skipped"))
    if not passed + failed:
        print("\nnothing ran")
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return int(failed > 0 or not passed)


def table(outcomes: list[Outcome]) -> None:
    """A row for each run."""
    line = "{:<8}{:<9}{:>6}{:>9}{:>9}{:>9}{:>9}".format
    print("\n" + line("tests", "MPI", "ranks", "passed", "failed", "skipped", "seconds"))
    for out in outcomes:
        print(line(out.run.what, out.run.mpi or "-", out.run.ranks, out.passed, len(out.failed), len(out.skipped),
                   f"{out.seconds:.1f}"))
