"""`bench machine`: rates and overheads are found again in times that they made, and real steps are timed."""

from dataclasses import replace

import numpy as np
import pytest

from hpcmoe import launch, tables
from hpcmoe.bench import machine as bench
from hpcmoe.bench.machine import Measured, Shape
from hpcmoe.predict import machine
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead
from hpcmoe.report.bench_machine import write
from hpcmoe.types import STAGES

pytestmark = pytest.mark.mpi
TRUE = Hardware("true", Device(8e10, 1e10, 1e10, few=bench.FEW, copy_rate=4e9, weight=4, value=4),
                Links(4, 3e9, 3e9, start=40e-6),
                Overhead(attention=200e-6, span=60e-6, gate=40e-6, pack=70e-6, expert=30e-6, combine=20e-6, head=90e-6,
                         host=15e-6))
OTHER = Shape(768, 1024, 5, 1, 2, 6, 48)


def made(shape: Shape, ranks: int) -> Measured:
    """What would be measured of it on such a machine, tokens spread evenly."""
    E = shape.experts * ranks
    chosen = np.full((shape.layers, E), min(shape.top_k, E) / E)
    step = bench.simulated(Measured(shape, 1.0, np.zeros(7), 0.0, chosen), TRUE, ranks)
    return Measured(shape, step.seconds, step.stages, float(step.stages[STAGES.index("exchange")]), chosen)


@pytest.mark.parametrize("ranks", [1, 4])
def test_what_made_the_times_is_found_again(comm, everywhere, ranks):
    found = bench.fit([made(shape, ranks) for shape in bench.SHAPES], ranks, 4, "found", 4)
    told, real = bench.simulated(made(OTHER, ranks), found, ranks).seconds, made(OTHER, ranks).seconds
    everywhere([] if abs(told / real - 1) < 0.1 else [f"{told} s are predicted of a step that takes {real} s"])


def test_real_steps_are_timed_and_the_file_is_read_again(comm, everywhere, tmp_path):
    world = launch.start()
    shape = Shape(64, 32, 2, 1, 1, 2, 3)
    one = bench.measure(world, shape)
    right = 0 < one.stages.sum() <= one.seconds * 1.05 and one.chosen.sum(axis=1) == pytest.approx([1, 1])
    problems = [] if right else [f"{one}"]
    if any(other != one.seconds for other in world.comm.allgather(one.seconds)):
        problems.append("ranks disagree")
    path = tmp_path / "this-machine.toml"
    write(path, bench.rounded(TRUE), world.size)
    if replace(machine.load(str(path)), name="true") != tables.build(Hardware, tables.parse(tables.dump(TRUE))):
        problems.append("the file reads otherwise")
    everywhere(problems)
