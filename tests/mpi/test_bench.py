"""`bench exchange` between real ranks, at sizes where nothing is measured but whether it is right."""

from itertools import product

import numpy as np
import pytest

from hpcmoe import array, launch
from hpcmoe.bench import exchange as bench
from hpcmoe.errors import JobError
from hpcmoe.exchange import tune
from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.lane import open_rows
from hpcmoe.files import exchange
from hpcmoe.report import text
from hpcmoe.report.bench_exchange import page
from hpcmoe.report.show import show

pytestmark = pytest.mark.mpi
MODES = ("raw", "alltoallv", "persistent", "headers", "pack")


@pytest.fixture
def world(comm):
    """This world, as a job sees it."""
    return launch.start()


@pytest.mark.parametrize("dtype", array.DTYPES)
def test_every_pattern_size_and_mode_is_timed(world, everywhere, dtype):
    rows, kind = [1, 3, 17], array.DTYPES[dtype]
    figures = bench.measure(world, rows, 5 if dtype == "float32" else 8, kind, rounds=2)
    width = 20 if dtype == "float32" else 16
    problems = []
    if [(f.pattern, f.rows, f.size) for f in figures] != [(p, n, n * width) for p, n in product(bench.PATTERNS, rows)]:
        problems.append(f"figures {figures}")
    problems += [f"{f} has no {mode}" for f in figures for mode in MODES if not getattr(f, mode) > 0]
    if any(figures != other for other in world.comm.allgather(figures)):
        problems.append("ranks disagree")
    everywhere(problems)


def test_every_size_is_timed_without_the_padding_of_another(world, everywhere, monkeypatch):
    """Rungs that are somewhat too large are used on; a bench must not time those of the size before."""
    opened, timed = [], []
    monkeypatch.setattr(bench, "open_rows", lambda *given: opened.append(open_rows(*given)) or opened[-1])
    monkeypatch.setattr(tune, "medians", lambda comm, idle, contest, rounds: timed.append(
        len(opened[-1].room(np.zeros(world.size, int), 4)[0])) or dict.fromkeys(contest, 1.0))
    bench.measure(world, [64, 16], 4, array.BFLOAT16, rounds=1)
    want = [world.size * count for _ in bench.PATTERNS for count in (64, 16)] if world.size > 1 else timed
    everywhere([] if timed == want else [f"{timed} rows, not {want}"])


def test_rows_that_arrive_wrong_are_noticed(world, everywhere, monkeypatch):
    """One value of the last rank's rows changes on the way."""
    def wrong(self, incoming, extent):
        if self._comm.rank == self._comm.size - 1 and self._rows.size:
            self._rows.flat[-1] ^= 1
        start(self, incoming, extent)
    start = Alltoallv.start
    monkeypatch.setattr(Alltoallv, "start", wrong)
    said = ""
    try:
        bench.measure(world, [2], 4, array.FLOAT32, rounds=1)
    except launch.Agreed as agreed:
        said = agreed.line
    want = f"alltoallv: rows from rank {world.size - 1} are not those that it sent" if world.size > 1 else ""
    everywhere([] if want in said else [f"said {said!r}"])


def test_patterns_leave_own_rows_out(world, everywhere):
    tables = [table(world.size, 7) for table in bench.PATTERNS.values()]
    everywhere([] if not any(np.diag(table).any() for table in tables) else ["own rows"])


@pytest.mark.parametrize("ranks, rows, words", [(1, [1], "two ranks or more"), (5, [1 << 20], "2\\*\\*31 - 1 bytes")])
def test_what_cannot_be_measured_is_refused(ranks, rows, words):
    with pytest.raises(JobError, match=words):
        bench.check(ranks, rows, 512)


def test_the_file_gives_the_figures_back(comm, shared_tmp, everywhere):
    figures = [exchange.Figure("even", 4, 64, *(number * 1e-6 for number in range(1, 7)))]
    table = exchange.Table(figures, 8, "bfloat16", 3, ["a", "a", "b"], "an MPI")
    path = shared_tmp / f"exchange-{comm.rank}.h5"
    exchange.write(path, table)
    everywhere([] if exchange.read(path) == table else [str(exchange.read(path))])


def test_show_prints_the_same_page(comm, world, shared_tmp, capsys, everywhere):
    figures = bench.measure(world, [2], 8, array.BFLOAT16, rounds=1)
    table = exchange.Table(figures, 8, "bfloat16", 1, world.hosts, world.library)
    path = shared_tmp / f"shown-{comm.rank}.h5"
    exchange.write(path, table)
    page(text.console(), table)
    printed = capsys.readouterr().out
    show(path, 0)
    everywhere([] if "All to one" in printed and capsys.readouterr().out.endswith(printed) else [printed])
