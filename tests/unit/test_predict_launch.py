"""What a GPU's main thread takes to launch, graphs, ranks that share a GPU; and that a fit finds all of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.bench import fit, machine
from hpcmoe.bench.machine import Measured, Shape
from hpcmoe.bench.solve import simulated, solved
from hpcmoe.predict import cost
from hpcmoe.predict.cost import Work
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.estimate import estimate
from hpcmoe.predict.layout import Layout, bare
from hpcmoe.predict.machine import Device, Hardware, Launch, Links, Overhead, Products
from hpcmoe.predict.rank import Rank
from hpcmoe.predict.simulate import Given, batch_of, simulate
from hpcmoe.types import STAGES

DEVICE = Device(1e15, 4e12, 1e11)
LAUNCH = Launch(begin=2e-4, attention=3e-4, span=8e-5, gate=1.5e-4, pack=4e-5, expert=2e-4, order=3e-4, combine=5e-5,
                head=4e-4)


def test_a_stage_takes_its_launch_or_its_work_whichever_is_longer():
    rank = Rank(0, 1, DEVICE, 1.0)
    rank.compute(Work("gate", by_overhead=1.0, launch=2.0), Work("pack", by_overhead=5.0, launch=1.0))
    assert rank.now == 3.0  # both are launched
    assert rank.clock.read()[[STAGES.index("gate"), STAGES.index("pack")]].tolist() == [2.0, 5.0]
    rank.compute(Work("expert", by_overhead=1.0, launch=0.5))
    assert (rank.now, rank.clock.read()[STAGES.index("expert")]) == (3.5, 1.0)  # behind the others, at 7
    rank.now = 20.0
    assert rank.busy() == 8.0


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_who_shares_a_device_has_what_others_leave(wanted):
    left, now, want = np.array(wanted), 0.0, np.zeros(3)
    while (left > 1e-12).any():  # by small steps
        busy = left > 1e-12
        step = left[busy].min() * busy.sum() / 3
        now += step
        left = np.where(busy, left - step * 3 / busy.sum(), 0.0)
        want[busy] = now
    works = np.zeros((6, 3))
    works[2], works[4] = wanted, 1.0
    found = cost.with_company(works, 3, 3)
    assert found[2] == pytest.approx(want, abs=1e-9) and (found[4] == 1).all()
    assert cost.with_company(works, 1, 3) is works
    both = np.stack([works, works[:, ::-1]], axis=2).reshape(6, -1)  # two devices of one node, dealt out in turn
    assert cost.with_company(both, 3, 6)[2, ::2] == pytest.approx(want, abs=1e-9)
    assert cost.with_company(both, 3, 6)[2, 1::2] == pytest.approx(want[::-1], abs=1e-9)


def gpu(**more) -> Hardware:
    """A machine with known values."""
    device, rows, values = replace(DEVICE, **more), (1, 64, 4096), (1 << 20, 1 << 26)
    n = device.shared_by
    seconds = tuple(n * max(2 * v / 4e12, 2 * r * v / 5e14) for r in rows for v in values)
    device = replace(device, products=Products(rows, values, seconds), rate_share=0.8 / n, flops_share=1 / n)
    return Hardware("known", device, Links(n, 1e11, 1e11, start=1e-5), Overhead(attention=5e-5, host=5e-5), LAUNCH)


def of(shape: Shape, hw: Hardware, ranks: int) -> Measured:
    """What would be measured on it."""
    experts = shape.experts * ranks
    top_k = min(shape.top_k, experts)
    chance = np.random.default_rng(shape.hidden + shape.sequences).dirichlet(np.full(experts, 5.0), shape.layers)
    nothing = Measured(shape, 1.0, np.zeros(len(STAGES)), top_k * chance)
    step = simulated(nothing, hw, ranks)
    return replace(nothing, seconds=step.seconds, stages=step.stages)


def test_tokens_that_follow_others_are_launched_at_once_and_prompts_are_not():
    hw = gpu()
    slow = replace(hw, launch=replace(LAUNCH, attention=1.0, gate=1.0, span=1.0))
    ones, prompts = Shape(2048, 1024, 2, 2, 2, 4, 60), Shape(2048, 1024, 2, 2, 2, 2, 0, 60)
    assert of(ones, slow, 2).seconds == of(ones, hw, 2).seconds
    assert of(prompts, slow, 2).seconds > 8 > 1 > of(prompts, hw, 2).seconds  # 2 layers, 2 sequences
    many = Shape(2048, 1024, 2, 2, 2, 300, 60)  # more than a graph is made for
    assert of(many, slow, 2).seconds > 4
    assert cost.recurs(hw, ones.batch.spans) and not cost.recurs(hw, batch_of(ones.model(1), [(1, 5), (2, 5)]).spans)
    assert not cost.recurs(replace(hw, device=replace(hw.device, weight=4)), ones.batch.spans)


def test_rows_of_the_only_expert_never_leave():
    shape = Shape(2048, 1024, 2, 1, 1, 4, 60)
    found = of(shape, gpu(), 1)
    assert found.stages[STAGES.index("exchange")] == 0 and found.stages[STAGES.index("expert")] > 0
    assert of(replace(shape, experts=2), gpu(), 1).seconds > 2 * found.seconds


@pytest.mark.parametrize("shape", [
    Shape(2048, 1024, 4, 1, 2, 16, 200), Shape(2048, 1024, 4, 2, 2, 16, 200), Shape(4096, 2048, 3, 1, 2, 3, 0, 400),
    Shape(2048, 1024, 3, 4, 2, 8, 0, 300)])
def test_the_closed_form_knows_of_launches(shape):
    hw, E = gpu(), 8 * shape.experts
    hw = replace(hw, links=replace(hw.links, ranks_per_node=8), overhead=replace(hw.overhead, exchange=1e-4))
    evenly, layout = Given(Demand(np.full((shape.layers, E), 2 / E), np.array([[0, 1]])), even=True), Layout(8, bare())
    step = simulate(shape.model(8), hw, layout, evenly, [shape.batch]).steps[0]
    assert estimate(shape.model(8), hw, layout, evenly, shape.batch).seconds == pytest.approx(step.seconds, rel=0.04)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_fit_finds_a_machine_by_its_steps(ranks):
    hw = gpu(shared_by=ranks)
    hw = replace(hw, overhead=replace(hw.overhead, exchange=8e-5 if ranks > 1 else 0.0))
    found = fit.fit([of(shape, hw, ranks) for shape in machine.DEVICE], hw.device.products, ranks, ranks, "found", 2,
                    ranks)
    others = Shape(2560, 1536, 3, 1, 2, 30, 200), Shape(3584, 1024, 2, 2, 1, 3, 0, 300), Shape(3072, 768, 2, 1, 2, 64,
                                                                                            90, 1, 2)
    for shape in others:
        want = of(shape, hw, ranks)
        assert simulated(want, found, ranks).seconds == pytest.approx(want.seconds, rel=0.04)
    assert found.launch.head == pytest.approx(LAUNCH.head, rel=0.05)
    assert found.overhead.exchange == pytest.approx(hw.overhead.exchange, abs=2e-5)


def test_values_are_solved_for_and_none_is_below_0():
    def seen(x):
        return np.array([x[0] + x[1] ** 2, x[0] - x[1], 2 * x[0]])
    found = solved(seen, seen(np.array([3.0, 2.0, 0.0])), np.array([1.0, 1.0, 7.0]), np.full(3, 1e-3), 20)
    assert found == pytest.approx([3, 2, 7], abs=1e-3)  # nothing depends on the last
    assert solved(lambda x: x, np.array([-1.0]), np.array([5.0]), np.array([1e-3]), 5).tolist() == [0]
