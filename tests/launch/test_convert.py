"""Model files made by whole jobs: interrupted at any moment, on any number of ranks, they come to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import deepseek
import h5py
import pytest
from launched import command, mpiexec, wait_for
from models import TINY

from hpcmoe import tables
from hpcmoe.convert import checkpoint
from hpcmoe.errors import CHECKPOINTED
from hpcmoe.files import lock, model, staged

GOLDENS = Path(__file__).parents[1] / "goldens"
SPEC = replace(TINY, name="to-be-made", layers=4)
SLOW = """
import sys, time
from hpcmoe.convert import progress
from hpcmoe.files import staged
progress.EVERY, staged.EVERY = 0.2, 0.0
fill = staged.Writer.fill
def slowly(self, name, blocks):
    time.sleep(%s)
    fill(self, name, blocks)
staged.Writer.fill = slowly
from hpcmoe.__main__ import main
main()
"""
"""A job that notes each tensor at once, and takes its time."""
FULL = """
import resource, signal
from hpcmoe.files import staged
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
begin = staged.Writer.__init__
def limited(self, *given):
    begin(self, *given)
    most = sorted(at for at, _ in given[0].places.values())[-5]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
staged.Writer.__init__ = limited
from hpcmoe.__main__ import main
main()
"""
"""As on a disk that fills up near the end."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(tables.dump(SPEC))
    return tmp_path / "m.h5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The file that a run makes that nobody interrupts, on one rank, without a launcher."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "spec.toml").write_text(tables.dump(SPEC))
    done = subprocess.run([sys.executable, *job(folder / "m.h5")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return plain(folder / "m.h5")


def plain(path: Path) -> bytes:
    """A file, but for what is new in each."""
    with h5py.File(path) as file:
        new = [file.attrs[name].encode() for name in ("uuid", "created")]
    content = path.read_bytes()
    for word in new:
        content = content.replace(word, bytes(len(word)))
    return content


def job(output: Path, *more: str, code: str = "") -> list[str]:
    """What Python is given."""
    how = ["-c", code] if code else ["-m", "hpcmoe"]
    return [*how, "init", str(output.with_name("spec.toml")), "-o", str(output), *more]


class Making:
    """A job that runs; without a launcher where `ranks` is 0."""

    def __init__(self, ranks: int, output: Path, pause: float = 0.02) -> None:
        arguments = job(output, code=SLOW % pause)
        self.output, self.log = output, output.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command(ranks, *arguments) if ranks else [sys.executable, *arguments],
                                            stdout=log, stderr=log, start_new_session=True)

    def until(self, tensors: int) -> None:
        """Returns once so many are noted by it and those before it, or it has ended."""
        wait_for(lambda: noted(self.output) >= tensors or self.process.poll() is not None)

    def ranks(self) -> list[int]:
        """Its processes that write."""
        return sorted(pid for pid in self._processes() if self._writes(pid))

    def kill(self) -> None:
        """Ends all of it, without a word."""
        for pid in self._processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(30)

    def _processes(self) -> list[int]:
        """All of its session, and of the sessions of those."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
        return found

    def _writes(self, pid: int) -> bool:
        files = [os.readlink(handle) for handle in Path(f"/proc/{pid}/fd").glob("*") if handle.is_symlink()]
        return str(staged.contents(self.output)) in files


def noted(output: Path) -> int:
    """Lines of all journals."""
    return sum(path.read_bytes().count(b" ") for path in staged.folder(output).glob("done-*"))


def ours(said: str) -> list[str]:
    """The lines that are not the launcher's own."""
    return [line for line in said.splitlines() if line.startswith("hpcmoe: ")]


def go_on(output: Path, whole: bytes, ranks: int) -> str:
    """Runs it to its end, which leaves the right file and nothing else; what it said."""
    ended = mpiexec(ranks, *job(output)) if ranks else subprocess.run([sys.executable, *job(output)],
                                                                      capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1 and str(output) in ended.stdout
    assert plain(output) == whole
    assert {path.name for path in output.parent.iterdir()} <= {"spec.toml", "m.h5", "m.log"}
    return ended.stderr


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_on_1_2_and_4_ranks(seed, output, whole):
    draw = random.Random(seed)
    for turn in range(3):
        before = noted(output)
        making = Making(draw.choice([0, 1, 2, 4]), output)
        making.until(before + draw.randrange(12))
        time.sleep(draw.random() * 0.1)
        making.kill()
        assert not output.exists() and noted(output) >= before, (turn, making.log.read_text())
    if seed == 0:
        with (staged.folder(output) / "done-0").open("ab") as journal:
            journal.write(b"layers/001/gate 00000000\nlayers/0")
    said = go_on(output, whole, draw.choice([0, 1, 2, 4]))
    assert f"going on with {output}" in said and said.count("\n") == 1


@pytest.mark.parametrize(("ranks", "number", "whom"), [
    (0, signal.SIGINT, None), (0, signal.SIGTERM, None), (0, signal.SIGUSR1, None), (3, signal.SIGUSR1, 2),
    (2, signal.SIGTERM, None), (2, signal.SIGINT, 0)])
def test_a_signal_ends_all_ranks_with_75_and_the_same_command_goes_on(ranks, number, whom, output, whole):
    making = Making(ranks, output)
    making.until(5)
    os.kill(making.process.pid if whom is None else making.ranks()[whom], number)
    assert making.process.wait(30) == CHECKPOINTED, making.log.read_text()
    said = [line for line in making.log.read_text().splitlines() if " came; " in line]
    assert len(said) == 1 and f"{number.name} came" in said[0] and said[0].endswith("the same command goes on")
    assert "rror" not in making.log.read_text() and not output.exists() and not lock.beside(output).exists()
    assert noted(output) >= 5
    assert "going on" in go_on(output, whole, 2 - ranks // 2)


def test_two_at_once_are_refused(output, whole):
    making = Making(2, output, 0.2)
    making.until(1)
    for second in (mpiexec(2, *job(output)), subprocess.run([sys.executable, *job(output)], capture_output=True,
                                                            text=True)):
        assert second.returncode == 2 and len(ours(second.stderr)) == 1, second.stderr
        assert f"output {output} is in use by process" in second.stderr
    assert making.process.wait(60) == 0 and plain(output) == whole


@pytest.mark.parametrize("ranks", [0, 2])
def test_other_options_are_refused_and_overwrite_begins_anew(ranks, output, whole):
    making = Making(2, output)
    making.until(4)
    making.kill()
    asked = job(output, "--seed", "3")
    for more, code in ((), 2), (("--overwrite",), 0):
        ended = mpiexec(ranks, *asked, *more) if ranks else subprocess.run([sys.executable, *asked, *more],
                                                                           capture_output=True, text=True)
        assert ended.returncode == code and len(ours(ended.stderr)) == (code > 0), ended.stderr
        assert code == 0 or ("(seed): the command that began it goes on with it, --overwrite begins anew"
                             in ended.stderr)
    assert plain(output) != whole and not staged.folder(output).exists()


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_disk_that_fills_up_is_said_once_and_costs_little(ranks, output, whole):
    arguments = job(output, code=FULL)
    ended = mpiexec(ranks, *arguments) if ranks else subprocess.run([sys.executable, *arguments], capture_output=True,
                                                                    text=True)
    assert ended.returncode == 2 and len(ours(ended.stderr)) == 1, ended.stderr
    assert f"{output} cannot be written: File too large" in ended.stderr
    assert not output.exists() and noted(output) > 20
    go_on(output, whole, ranks)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_log_is_told_how_far_it_is(ranks, output):
    making = Making(ranks, output)
    assert making.process.wait(60) == 0
    *lines, last = making.log.read_text().splitlines()
    assert len(lines) > 1 and all(" of " in line and "/s, " in line and "minutes left" in line for line in lines)
    assert last.startswith(f"{output}: to-be-made")


def test_ranks_convert_as_one_process_does_and_only_the_first_one_speaks(tmp_path):
    said = []
    for name, ranks in ("a", 1), ("b", 3):
        arguments = ["-m", "hpcmoe", "convert", str(GOLDENS / "mixtral_sharded"), "-o", str(tmp_path / f"{name}.h5")]
        done = mpiexec(ranks, *arguments)
        assert done.returncode == 0, done.stderr
        said.append((done.stdout.replace(f"{name}.h5", ""), done.stderr))
    assert said[0] == said[1] and said[0][0].count("\n") == said[0][1].count("\n") == 1
    assert plain(tmp_path / "a.h5") == plain(tmp_path / "b.h5")


@pytest.mark.parametrize("words", [["convert", "nowhere"], ["init", "nowhere.toml"]], ids=" ".join)
def test_what_all_ranks_find_wrong_is_one_line(words, tmp_path):
    done = mpiexec(3, "-m", "hpcmoe", *words, "-o", str(tmp_path / "m.h5"))
    assert done.returncode == 3 and len(ours(done.stderr)) == 1, done.stderr
    assert "nowhere" in done.stderr and not list(tmp_path.iterdir())


MEASURED = """
import resource, sys
from hpcmoe.__main__ import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr, flush=True)
"""
MOST = 600 << 10
"""KiB that a rank may take, whatever the size of the model."""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_memory_is_that_of_a_few_blocks(ranks, tmp_path):
    """5.4 GB of a model whose experts are DeepSeek-V3's, from float8."""
    deepseek.write(tmp_path / "checkpoint", layers=2, dense=1, experts=32, vocabulary=32768)
    arguments = ["-c", MEASURED, "convert", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "m.h5")]
    ended = mpiexec(ranks, *arguments) if ranks else subprocess.run([sys.executable, *arguments], capture_output=True,
                                                                    text=True)
    assert ended.returncode == 0, ended.stderr
    peaks = [int(line.split()[1]) for line in ended.stderr.splitlines() if line.startswith("peak")]
    assert len(peaks) == max(1, ranks) and max(peaks) < MOST, peaks
    assert (tmp_path / "m.h5").stat().st_size > 5 << 30
    (tmp_path / "m.h5").unlink()


@pytest.mark.slow
def test_a_checkpoint_of_91_985_tensors(tmp_path, monkeypatch):
    """DeepSeek-V3 as it is, 685 GB: the look through it, and room for its 30,486 tensors of ours, 1.3 TB."""
    assert deepseek.write(tmp_path / "checkpoint")[1] == 91_985
    monkeypatch.setattr(staged, "_check_room", lambda output, needs: None)
    begin = time.perf_counter()
    found = checkpoint.open_checkpoint(tmp_path / "checkpoint")
    looked = time.perf_counter()
    made = model.begin(tmp_path / "m.h5", found, "bfloat16", model.apart, {})
    assert made and len(made.places) == 30_486 and made.total > 1.3e12
    assert looked - begin < 20 and time.perf_counter() - looked < 240
    assert staged.contents(tmp_path / "m.h5").stat().st_blocks < 1 << 20  # 512 MiB
    staged.clear(tmp_path / "m.h5")


def test_without_a_launcher_there_is_no_mpi(output):
    code = "import sys\nfrom hpcmoe.__main__ import main\ntry: main()\nfinally: print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, *job(output, code=code)], capture_output=True, text=True)
    assert done.stdout.endswith("False\n") and done.returncode == 0
