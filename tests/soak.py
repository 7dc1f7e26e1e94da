"""Kills jobs at random moments, goes on with them, and compares what comes of it with undisturbed runs.

    python tests/soak.py --kills 200 --seed 1

Each kill takes a victim (a rank, the launcher, its daemon on the node) and a way (SIGKILL, SIGTERM, SIGSTOP of a rank
with `exchange.timeout = 5`), at a moment that is uniform over the time that such a job takes. The job is then given
again, on another number of ranks, schedule and exchange, until it is done; then a new one begins. What counts: prompts
lost, duplicated or with other bits in tokens or log-probabilities; kills after which the job took longer than it may to
end; and what was left of it: processes, locks, shared memory.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from launched import Running
from models import TINY

from hpcmoe import tables
from hpcmoe.errors import CHECKPOINTED, INTERNAL
from hpcmoe.files import lock, parts, prompts

VICTIMS = {"a rank": ("KILL", "TERM", "STOP"), "the launcher": ("KILL", "TERM"), "its daemon": ("KILL",)}
"""MPICH's daemon takes no notice of SIGTERM."""
WITHIN = 15.0
"""Seconds in which a job must end whose rank, launcher or daemon was killed."""
STOPPED = 40.0
"""The same for one whose rank was stopped: others wait for it first, and ask it."""
JOB = """
model = "../spec.toml"
prompts = "../p.h5"
output = "out.h5"
[compute]
reproducible = true
dtype = "float32"
[exchange]
timeout = 5.0
[generate]
ignore_eos = true
max_new_tokens = {new}
temperature = {temperature}
seed = 5
[checkpoint]
every = 0.3
"""


@dataclass
class Tally:
    """What came of all kills."""

    kills: Counter = field(default_factory=Counter)
    ends: Counter = field(default_factory=Counter)
    """exit codes of killed runs"""
    jobs: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    outside: int = 0
    """ranks that were stopped outside of steps, where nobody waits for them with a limit: the soak ended those jobs"""
    slow: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def wrong(self) -> int:
        """How much is not as it should be."""
        return self.lost + self.duplicated + self.differing + len(self.slow) + len(self.left) + len(self.failed)

    def words(self) -> str:
        """For people."""
        lines = [f"{self.kills.total()} kills in {self.jobs} jobs: {self.lost} prompts lost, {self.duplicated} "
                 f"duplicated, {self.differing} with other bits; the slowest end took {self.slowest:.1f} s; "
                 f"{self.outside} stopped outside of steps",
                 "kills: " + ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items())),
                 "exit codes: " + ", ".join(f"{code} {count}" for code, count in sorted(self.ends.items()))]
        return "\n".join(lines + self.slow + self.left + self.failed)


class Soak:
    """Jobs in one folder, one after another."""

    def __init__(self, folder: Path, ranks: tuple[int, ...], count: int, new: int, rng: random.Random) -> None:
        """`count` prompts with `new` tokens each; rank counts are drawn from `ranks`."""
        self.folder, self.ranks, self.count, self.rng, self.tally = folder, ranks, count, rng, Tally()
        (folder / "spec.toml").write_text(tables.dump(TINY))
        lists = [np.arange(n % 11, n % 11 + 1 + n % 17, dtype=np.int32) for n in range(count)]
        prompts.write(folder / "p.h5", [str(n) for n in range(count)], lists)
        self.wanted, self.seconds = {}, {}
        for name, temperature in ("greedy", 0.0), ("seeded", 1.0):
            job = self.job(name, new, temperature)
            begin = time.monotonic()
            assert Running(min(ranks), job).wait(300) == 0, job.with_suffix(".log").read_text()
            self.seconds[name] = time.monotonic() - begin
            self.wanted[name] = read(job.with_name("out.h5"))
            job.with_name("out.h5").unlink()
        self.segments: set[str] = set()

    def job(self, name: str, new: int, temperature: float) -> Path:
        """A job file, in a folder of its own for its output."""
        (self.folder / name).mkdir()
        path = self.folder / name / "job.toml"
        path.write_text(JOB.format(new=new, temperature=temperature))
        return path

    def run(self, kills: int, seconds: float) -> Tally:
        """Jobs, until so many kills have hit, or no new job within so many seconds."""
        end = time.monotonic() + seconds
        while self.tally.kills.total() < kills and time.monotonic() < end:
            self._one(self.rng.choice(list(self.wanted)), kills)
        return self.tally

    def _one(self, name: str, kills: int) -> None:
        """One job to its end, with kills on the way; after some it may go undisturbed."""
        job = self.folder / name / "job.toml"
        self.tally.jobs += 1
        for attempt in range(30):
            quiet = attempt > 5 or self.tally.kills.total() >= kills
            code = self._attempt(job, self.seconds[name], quiet)
            if code == 0:
                break
            if quiet:
                said = job.with_suffix(".log").read_text()
                self.tally.failed.append(f"{job.parent.name}: an undisturbed run ended with {code}:\n{said}")
                break
        self._compare(job, name)
        for path in job.parent.iterdir():
            if path != job:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _attempt(self, job: Path, seconds: float, quiet: bool) -> int:
        """One run, killed or not; its exit code."""
        rng = self.rng
        settings = {"schedule.mode": rng.choice(["serial", "overlapped"]), "exchange.mode": rng.choice(
            ["alltoallv", "persistent"]), "schedule.max_sequences": rng.choice([2, 3, 5])}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        before = set(job.parent.glob("out.h5.parts/*"))
        running = Running(rng.choice(self.ranks), job, *words)

        def stepped() -> bool:
            """Whether a rank has committed in this run."""
            return any("-99999-" not in path.name for path in set(job.parent.glob("out.h5.parts/*")) - before)
        try:
            code = running.wait(300) if quiet else self._disturb(running, seconds, stepped)
        finally:
            if running.process.poll() is None:  # the soak itself was told to end
                running.process.terminate()
        self._look(job)
        return code

    def _look(self, job: Path) -> None:
        """What runs have committed so far holds no prompt twice, and none with other bits: what packs it would hide
        both."""
        answers = [answer for path in parts.files(job.with_name("out.h5")) for answer in parts.read(path).answers]
        wanted = set(self.wanted[job.parent.name])
        self.tally.duplicated += len(answers) - len({answer.prompt for answer in answers})
        self.tally.differing += sum((a.prompt, a.tokens.tobytes(), a.logprobs.tobytes()) not in wanted for a in answers)

    def _alone(self, running: Running) -> int:
        """The exit code of a run that came to its end before it was killed."""
        code = running.wait(60)
        if code:
            self.tally.failed.append(f"ended by itself with {code}:\n{running.said[-2000:]}")
        return code

    def _disturb(self, running: Running, seconds: float, stepped: Callable[[], bool]) -> int:
        """Kills a part of a run at some moment, if it lives so long; the run's exit code."""
        rng = self.rng
        moment = time.monotonic() + rng.uniform(0, 1.5 * seconds)
        victim = rng.choice(list(VICTIMS))
        way = rng.choice(VICTIMS[victim])
        pids = running.ranks()
        if way == "STOP":  # what stops before the first step or behind the last one is not the exchange's to notice
            while running.process.poll() is None and not stepped():
                time.sleep(0.01)
            moment = time.monotonic() + rng.uniform(0, 0.2 * seconds)
        while time.monotonic() < moment and running.process.poll() is None:
            time.sleep(0.005)
        if running.process.poll() is not None or not pids or not alive(pids):
            return self._alone(running)
        return self._kill(running, pids, victim, way)

    def _kill(self, running: Running, pids: list[int], victim: str, way: str) -> int:
        daemons = {parent(pid) for pid in alive(pids)} - {running.process.pid, 1}
        choice = {"a rank": pids, "the launcher": [running.process.pid], "its daemon": sorted(daemons)}[victim]
        if not choice:
            return self._alone(running)
        self.segments |= {path for pid in pids for path in segments(pid)}
        begin, number = time.monotonic(), getattr(signal, f"SIG{way}")
        try:
            os.kill(self.rng.choice(choice), number)
        except ProcessLookupError:
            return self._alone(running)
        self.tally.kills[f"{way} {victim}"] += 1
        print(f"soak: {self.tally.kills.total()}: {way} {victim} of {len(pids)}; wrong so far: {self.tally.wrong}",
              file=sys.stderr, flush=True)
        limit = STOPPED if way == "STOP" else WITHIN
        while alive([*pids, running.process.pid]) and time.monotonic() < begin + limit:
            time.sleep(0.02)
        took = time.monotonic() - begin
        left = alive([*pids, *daemons, running.process.pid])
        if not left:
            self.tally.slowest = max(self.tally.slowest, took)
        elif way == "STOP" and "error" not in running.said:
            self.tally.outside += 1
        else:
            self.tally.slow.append(f"{way} {victim}: {len(left)} processes after {took:.0f} s:\n{running.said[-2000:]}")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        code = running.wait(60)
        self.tally.ends[code] += 1
        if way == "TERM" and (code == INTERNAL or "internal error" in running.said):
            self.tally.failed.append(f"{way} {victim}: ended with {code}:\n{running.said[-2000:]}")
        if code == CHECKPOINTED and lock.beside(running.log.with_name("out.h5")).exists():
            self.tally.left.append(f"{way} {victim}: a lock after code 75")
        return code

    def _compare(self, job: Path, name: str) -> None:
        output = job.with_name("out.h5")
        if not output.exists():
            self.tally.lost += self.count
            return
        got, wanted = read(output), self.wanted[name]
        numbers = [number for number, *_ in got]
        self.tally.lost += len(set(range(self.count)) - set(numbers))
        self.tally.duplicated += len(numbers) - len(set(numbers))
        self.tally.differing += sum(one not in wanted for one in got)
        more = sorted(path.name for path in job.parent.glob("*out.h5*") if path != output)
        more += sorted(path for path in self.segments if os.path.exists(path))
        if more:
            self.tally.left.append(f"left behind: {', '.join(more)}")
            print(f"soak: {self.tally.left[-1]}", file=sys.stderr, flush=True)
            self.segments.clear()


def read(output: Path) -> list[tuple[int, bytes, bytes]]:
    """(prompt, bits of its tokens, of its log-probabilities) of each answer."""
    with h5py.File(output) as file:
        at = file["tokens/offsets"][:]
        return [(int(number), file["tokens/data"][a:b].tobytes(), file["logprobs/data"][a:b].tobytes())
                for number, a, b in zip(file["prompt"][:], at, at[1:])]


def segments(pid: int) -> set[str]:
    """The files in shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line[line.index("/dev/shm/"):].removesuffix(" (deleted)") for line in lines if "/dev/shm/" in line}


def fields(pid: int) -> list[str]:
    """State, parent, … of a process; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parent(pid: int) -> int:
    """The parent of a process."""
    return int((fields(pid) or ["", "1"])[1])


def alive(pids: list[int]) -> list[int]:
    """Those that run; one that waits for its parent does not."""
    return [pid for pid in pids if (fields(pid) or "X")[0] not in "ZX"]


def main() -> int:
    """The exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seconds", type=float, default=1e9, help="no new job later than that")
    options.add_argument("--seed", type=int, default=0, help="0 = another one each time")
    options.add_argument("--ranks", default="4,5,8,16", help="numbers of ranks to draw from")
    options.add_argument("--prompts", type=int, default=200)
    options.add_argument("--tokens", type=int, default=40)
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = chosen.seed or random.SystemRandom().randrange(1, 10**6)
    print(f"soak: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hpcmoe-soak-") as folder:
        ranks = tuple(int(number) for number in chosen.ranks.split(","))
        tally = Soak(Path(folder), ranks, chosen.prompts, chosen.tokens, random.Random(seed)).run(
            chosen.kills, chosen.seconds)
    print(tally.words(), flush=True)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
