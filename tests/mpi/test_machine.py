"""`bench machine`: rates and overheads are found again in times that they made, and real steps are timed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import launch, tables
from hpcmoe.bench import fit, products, solve
from hpcmoe.bench import machine as bench
from hpcmoe.bench.machine import Measured, Shape
from hpcmoe.predict import machine
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead, Products
from hpcmoe.report.bench_machine import write

pytestmark = pytest.mark.mpi
ROWS, VALUES = (1, 8, 64, 512), (1 << 16, 1 << 22)
TABLE = Products(ROWS, VALUES, tuple(max(4 * values / 9e9, 2 * rows * values / 8e10) for rows in ROWS
                                     for values in VALUES))
TRUE = Hardware("true", Device(8e10, 1e10, 1e10, weight=4, value=4, products=TABLE, in_turns=1.2),
                Links(4, 3e9, 3e9, start=40e-6),
                Overhead(attention=200e-6, span=60e-6, score=5e-9, gate=40e-6, pack=70e-6, expert=30e-6,
                         combine=20e-6, head=90e-6, host=15e-6, turn=100e-6))
OTHERS = (Shape(768, 1024, 5, 1, 2, 6, 48), Shape(640, 1280, 3, 2, 2, 2, 0, 150),
          Shape(896, 1024, 4, 1, 2, 16, 30, 1, 2))


def made(shape: Shape, ranks: int) -> Measured:
    """What would be measured of it on such a machine, tokens spread evenly."""
    E = shape.experts * ranks
    chosen = np.full((shape.layers, E), min(shape.top_k, E) / E)
    step = solve.simulated(Measured(shape, 1.0, np.zeros(7), chosen), TRUE, ranks)
    return Measured(shape, step.seconds, step.stages, chosen)


@pytest.mark.many_ranks  # every rank does the same
@pytest.mark.parametrize("ranks", [1, 4])
def test_what_made_the_times_is_found_again(comm, everywhere, ranks):
    found = fit.fit([made(shape, ranks) for shape in bench.HOST], TABLE, ranks, 4, "found", 4)
    pairs = [(solve.simulated(made(shape, ranks), found, ranks).seconds, made(shape, ranks).seconds)
             for shape in OTHERS]
    everywhere([f"{told} s are predicted of a step that takes {real} s" for told, real in pairs
                if abs(told / real - 1) > 0.02])


def test_real_steps_and_products_are_timed_and_the_file_is_read_again(comm, everywhere, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(products, "ROWS", {"host": (1, 3)})
    monkeypatch.setattr(products, "SIDES", {"host": (32, 64)})
    world = launch.start()
    shapes = Shape(64, 32, 2, 1, 1, 2, 3), Shape(64, 32, 2, 1, 1, 4, 3, 1, 2)
    found, table = bench.measure(world, shapes), products.measure(world)
    right = all(one.stages.sum() > 0 and one.chosen.sum(axis=1) == pytest.approx([1, 1]) for one in found)
    problems = [] if right and found[0].stages.sum() <= found[0].seconds * 1.05 else [f"{found}"]
    mine = [one.seconds for one in found], table
    if any(other != mine for other in world.comm.allgather(mine)):
        problems.append("ranks disagree")
    if (table.rows, table.values) != ((1, 3), (1024, 4096)) or not all(one > 0 for one in table.seconds):
        problems.append(f"{table}")
    path = tmp_path / "this-machine.toml"
    write(path, fit.rounded(TRUE), world.size)
    if replace(machine.load(str(path)), name="true") != tables.build(Hardware, fit.rounded(TRUE)):
        problems.append("the file reads otherwise")
    everywhere(problems)


@given(st.integers(1, 4), st.integers(0, 1 << 30))
@settings(max_examples=50)
def test_no_value_of_a_fit_is_negative_and_all_above_0_are_the_best_together(columns, seed):
    chance = np.random.default_rng(seed)
    matrix, wanted = chance.standard_normal((8, columns)) + 1, chance.standard_normal(8)
    found = solve.nonnegative(matrix, wanted)
    assert (found >= 0).all()
    kept = found > 0
    if kept.any():
        assert found[kept] == pytest.approx(np.linalg.lstsq(matrix[:, kept], wanted, rcond=None)[0])
    if (np.linalg.lstsq(matrix, wanted, rcond=None)[0] > 0).all():
        assert kept.all()
