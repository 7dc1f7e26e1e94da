"""Damaged files of every kind: each must end in an error line or an answer, in seconds, in little memory.

    python tests/fuzz/run.py --count 5000 --seed 1          # many
    python tests/fuzz/run.py --seed 1 --only 137            # one of them again

Input N of a seed is always the same. Each is given to the verbs in a process of its own, forked where all is imported.
What goes wrong is told with its number, and the damaged files stay in build/fuzz/. The last line sums up.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "tests"), str(Path(__file__).parent)]
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from damage import pick, structure  # noqa: E402
from given import KINDS, make  # noqa: E402

from hpcmoe.__main__ import main as hpcmoe  # noqa: E402
from hpcmoe.convert import checkpoint, gguf  # noqa: E402, F401
from hpcmoe.errors import InputError  # noqa: E402
from hpcmoe.files import vet  # noqa: E402
from hpcmoe.report import check, plan, report, run, show  # noqa: E402, F401 (verbs import them when they run)

SECONDS, BYTES = 10.0, 1 << 30
"""No input may take more of a core's time, or more memory."""
PATIENCE = 300
"""Seconds until an input that sleeps is taken to hang."""
CODES = (0, 2, 3)
KEPT = ROOT / "build" / "fuzz"


@dataclass
class Sum:
    """What some inputs came to."""

    inputs: int = 0
    refused: int = 0
    """by all verbs"""
    slowest: float = 0.0
    slowest_was: str = ""
    largest: int = 0
    """bytes"""
    largest_was: str = ""
    wrong: int = 0

    def add(self, other: "Sum") -> None:
        """Takes in another."""
        self.inputs, self.refused = self.inputs + other.inputs, self.refused + other.refused
        if other.slowest > self.slowest:
            self.slowest, self.slowest_was = other.slowest, other.slowest_was
        if other.largest > self.largest:
            self.largest, self.largest_was = other.largest, other.largest_was
        self.wrong += other.wrong


def main() -> int:
    """All inputs, on all workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", type=int, help="one input, with all that is said of it")
    chosen = parser.parse_args()
    numbers = range(chosen.count) if chosen.only is None else [chosen.only]
    KEPT.mkdir(parents=True, exist_ok=True)
    print(f"seed {chosen.seed}, {len(numbers)} inputs; what goes wrong is kept in {KEPT}", flush=True)
    begun, total = time.time(), Sum()
    parts = [numbers[k::chosen.workers] for k in range(chosen.workers)]
    for told in [_fork(lambda part=part: [asdict(work(chosen.seed, part))]) for part in parts if part]:
        found, how, _ = _join(*told)
        if not found:
            sys.exit(f"a worker ended: {how}")
        total.add(Sum(**found[0]))
    print(f"seed {chosen.seed}: {total.inputs} inputs, {total.refused} refused by all verbs, {total.wrong} wrong; "
          f"slowest {total.slowest:.2f} s of a core ({total.slowest_was}), "
          f"largest {total.largest / 1e6:.0f} MB ({total.largest_was}); {time.time() - begun:.0f} s")
    return bool(total.wrong)


def work(seed: int, numbers) -> Sum:
    """Some inputs, one after another."""
    total, clean = Sum(), KEPT / f"clean-{os.getpid()}"
    make(clean)
    for number in numbers:
        try_one(seed, number, clean, total, aloud=len(numbers) == 1)
    vet.end()
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    _weigh(total, "the child that looks through files", 0, most)
    shutil.rmtree(clean)
    return total


def try_one(seed: int, number: int, clean: Path, total: Sum, aloud: bool) -> None:
    """One input and its verbs; its files stay where something is wrong."""
    folder = KEPT / f"{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    kind, how, verbs, path = damaged(seed, number, clean, folder)
    name = f"{number} ({kind}: {how})"
    prepare(path)
    told, used, taken = _join(*_fork(lambda: [one(folder, verb) for verb in verbs], SECONDS))
    if number % 50 == 0 and told:
        told.append(alone(folder, verbs[0]))
    wrong = [word for verb in told for word in judge(verb)] if told else [f"ended by {used}"]
    if aloud:
        print(name, json.dumps(told, indent=1), sep="\n", flush=True)
    total.inputs += 1
    total.refused += bool(told) and all(verb["code"] for verb in told)
    _weigh(total, name, used if told else 0, taken)
    for word in wrong:
        _complain(total, name, word)
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)


def _complain(total: Sum, name: str, word: str) -> None:
    total.wrong += 1
    print(f"WRONG {name}: {word}", flush=True)


def _weigh(total: Sum, name: str, used: float, taken: int) -> None:
    if used > total.slowest:
        total.slowest, total.slowest_was = used, name
    if taken > total.largest:
        total.largest, total.largest_was = taken, name
    if taken > BYTES:
        _complain(total, name, f"{taken / 1e6:.0f} MB")


def damaged(seed: int, number: int, clean: Path, folder: Path):
    """Input `number`: its kind, what was done, the verbs to give it to, and its file."""
    rng = np.random.default_rng([seed, number])
    kind = pick(rng, list(KINDS))
    how, verbs = KINDS[kind]
    shutil.copytree(clean, folder, symlinks=True)
    path = folder / kind
    if path.suffix == ".h5" and rng.random() < 0.6:
        said, *_ = _join(*_fork(lambda: _damage(rng, path), SECONDS))  # may crash, and leave half a file
        done = said or "the library crashed when it was damaged"
    else:
        path.write_bytes(how(rng, path.read_bytes()))
        done = how.__name__
    verbs = [list(verb) for verb in verbs]
    if verbs[-1][0] == "run" and number % 8:  # it takes longer than all else
        verbs.pop()
    return kind, done, verbs, path


def _damage(rng: np.random.Generator, path: Path) -> str:
    """`damage.structure` with a limit on memory, which would count as that of the child that looks through files."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    return structure(rng, path)


def prepare(path: Path) -> None:
    """Looks through a file here, so that one child does it for many inputs; who asks again is told the same."""
    ways = {".h5": [("", vet.HDF5), ("results" if path.stem in ("out", "ran") else path.stem, vet.HDF5)],
            ".gguf": [("", gguf.__name__)]}
    for layout, by in ways.get(path.suffix, []):
        with contextlib.suppress(InputError):
            vet.check(path, layout, by)


def one(folder: Path, words: list[str]) -> dict:
    """What a verb comes to, in this process."""
    os.chdir(folder)
    out, err, code = io.StringIO(), io.StringIO(), 0
    out.reconfigure = lambda **options: None  # type: ignore[attr-defined]
    sys.argv = ["hpcmoe", *(str(folder / word) if (folder / word).exists() else word for word in words)]
    begun = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            hpcmoe()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = 70
            traceback.print_exc(file=err)
    return {"words": words, "code": code, "out": out.getvalue(), "err": err.getvalue(),
            "seconds": time.process_time() - begun}


def alone(folder: Path, words: list[str]) -> dict:
    """The same as users start it."""
    begun = _spent()
    done = subprocess.run([sys.executable, "-m", "hpcmoe", *words], cwd=folder, capture_output=True, text=True,
                          timeout=PATIENCE, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    return {"words": words, "code": done.returncode, "out": done.stdout, "err": done.stderr,
            "seconds": _spent() - begun}


def _spent() -> float:
    """Seconds of a core that processes took that ended."""
    return sum(os.times()[2:4])


def judge(told: dict) -> list[str]:
    """What is wrong with how a verb ended."""
    wrong, lines = [], told["err"].splitlines()
    errors = [line for line in lines if not line.startswith("hpcmoe: ")]
    if told["code"] not in CODES:
        wrong.append(f"code {told['code']}")
    if errors and told["words"][0] != "run":  # which has a bar, too
        wrong.append("more than error lines")
    if told["code"] and sum(line.startswith("hpcmoe: error: ") for line in lines) != 1:
        wrong.append(f"not one error line but {len(lines)}")
    if any(c not in "\n\t\r" and unicodedata.category(c) == "Cc" for c in told["out"] + told["err"]):
        wrong.append("raw control characters")
    if told["seconds"] > SECONDS:
        wrong.append(f"{told['seconds']:.0f} s")
    return [f"{' '.join(told['words'])}: {word}: {told['err'][-1500:]!r}" for word in wrong]


def _fork(job, seconds: float | None = None):
    """Starts `job` in a process of its own; what it gives is told as JSON."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, source
    try:
        os.close(source)
        if seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds * 3), int(seconds * 3)))  # of all verbs together
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(PATIENCE)
        with os.fdopen(sink, "w") as file:
            json.dump(job(), file)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def _join(pid: int, source: int):
    """What it gave, or None; the seconds of a core that it took, or what ended it; its memory in bytes."""
    with os.fdopen(source) as file:
        text = file.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        return None, f"signal {status & 127}" if status & 127 else f"code {status >> 8}", usage.ru_maxrss * 1024
    return json.loads(text), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
