"""A run, a plan by what it counted, and the same job by the plan: the same answers, and what the plan foretold."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import answers, mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import plan, prompts, results
from hpcmoe.traffic import CLASSES

pytestmark = pytest.mark.large
PROMPTS = 96
FAR = CLASSES.index("other nodes")


def make(folder: Path, experts: int, top_k: int, more: str, mode: str = "alltoallv") -> Path:
    """A job that is reproducible, so that who holds what has no part in its answers."""
    (folder / "spec.toml").write_text(tables.dump(replace(TINY, moe=replace(TINY.moe, experts=experts, top_k=top_k))))
    prompts.write(folder / "p.h5", [str(n) for n in range(PROMPTS)],
                  [np.arange(n % 7, n % 7 + 3 + n % 9, dtype=np.int32) for n in range(PROMPTS)])
    path = folder / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 6\n'
                    f'ignore_eos = true\n[compute]\nreproducible = true\n[exchange]\nmode = "{mode}"\n{more}')
    return path


def run(ranks: int, job: Path, output: str, *settings: str) -> Path:
    """Its output."""
    words = [word for setting in settings for word in ("--set", setting)]
    ended = mpiexec(ranks, "-m", "hpcmoe", "run", str(job), "-o", str(job.with_name(output)), *words)
    assert ended.returncode == 0, ended.stderr
    return job.with_name(output)


def planned(output: Path, *words: str) -> plan.Plan:
    """What `hpcmoe plan` makes of a run."""
    ended = subprocess.run([sys.executable, "-m", "hpcmoe", "plan", str(output), "-o",
                            str(output.with_name("plan.h5")), *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return plan.read(output.with_name("plan.h5"))


def sent_far(output: Path, layers: int, row: int) -> np.ndarray:
    """`[layers]`: rows of so many bytes that a token sent to other nodes, both ways, in the last layers."""
    with h5py.File(output) as file:
        return file["exchange/layer/bytes"][-layers:, FAR] / file["timings/tokens"][:].sum() / row


def test_sixteen_ranks_on_four_nodes_in_two_hops(tmp_path):
    """Fewer rows between nodes than experts in order, as many as foretold, and as the table of two hops says."""
    job = make(tmp_path, 16, 8, "[parallel]\nranks_per_node = 4\n")
    flat = run(16, job, "flat.h5")
    found = planned(flat, "--exchange", "twohop")
    two = run(16, job, "two.h5", "exchange.mode=twohop")
    short = run(16, job, "short.h5", "exchange.mode=twohop", f"parallel.plan={tmp_path / 'plan.h5'}")
    assert answers(flat, PROMPTS) == answers(two, PROMPTS) == answers(short, PROMPTS)
    layers, row = len(found.predicted.layers), 2 * TINY.hidden
    trailer = 1 + 16 / row  # in rows: eight int16 behind each on its way there
    assert np.allclose(sent_far(flat, layers, row), 6 + 6, rtol=0.05)
    home = 6.0  # answers come home one by one
    there = (sent_far(two, layers, row) - home) / trailer, (sent_far(short, layers, row) - home) / trailer
    assert (np.abs(there[0] - 2.88) < 0.3).all()
    assert there[1].mean() < there[0].mean()
    crossing = found.predicted.crossing[found.predicted.layers]
    assert np.allclose(there[1], crossing, atol=0.3) and abs(there[1].mean() / crossing.mean() - 1) < 0.05


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[Path, Path, plan.Plan]:
    """A job, its output without a plan, and the plan that was made of that."""
    job = make(tmp_path_factory.mktemp("uneven"), 8, 2, "[parallel]\nranks_per_node = 4\n")
    before = run(12, job, "before.h5")
    return job, before, planned(before, "--policy", "load")


@pytest.mark.parametrize("exact", ["false", "true"])
def test_replicas_on_spare_ranks_share_the_rows_as_planned(uneven, exact):
    job, before, found = uneven
    after = run(12, job, f"exact-{exact}.h5", f"parallel.plan={job.with_name('plan.h5')}", f"balance.exact={exact}")
    assert answers(before, PROMPTS) == answers(after, PROMPTS)
    went = results.routing(after)
    rows, foretold = went.computed[found.predicted.layers], found.predicted.rows[found.predicted.layers]
    assert rows.sum() == went.load.sum() and any(found.placements[n].replicated for n in found.predicted.layers)
    shares, planned_shares = (part / part.sum(axis=1, keepdims=True) for part in (rows, foretold))
    assert np.abs(shares.max(axis=1) / planned_shares.max(axis=1) - 1).max() < 0.05
    imbalance = results.routing(before).computed[found.predicted.layers]
    assert (rows.max(axis=1) < imbalance.max(axis=1)).all()


def test_a_plan_for_other_ranks_is_refused(tmp_path):
    job = make(tmp_path, 8, 2, "")
    planned(run(2, job, "before.h5"), "--ranks", "4", "--ranks-per-node", "4")
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(job), "--set", f"parallel.plan={tmp_path / 'plan.h5'}")
    lines = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert ended.returncode == 3 and len(lines) == 1 and "ranks: 4 there, 2 here" in lines[0], ended.stderr


def test_groups_that_share_experts_are_planned_as_ranks(tmp_path):
    """Four ranks, two shards of each expert: both ranks of a group compute the same rows, as many as the plan says."""
    job = make(tmp_path, 5, 2, "[parallel]\nexpert_tensor = 2\n", "auto")
    flat = run(4, job, "flat.h5")
    found = planned(flat, "--slots", "3", "--policy", "load")
    assert found.ranks == 2 and all(p.shards == 1 for p in found.placements)
    by_plan = run(4, job, "by-plan.h5", f"parallel.plan={tmp_path / 'plan.h5'}", "exchange.mode=twohop",
                  "parallel.ranks_per_node=2")
    assert answers(flat, PROMPTS) == answers(by_plan, PROMPTS)
    went = results.routing(by_plan)
    assert np.array_equal(went.computed[:, ::2], went.computed[:, 1::2])
    assert went.computed.sum() == 2 * went.load.sum()
    shown = subprocess.run([sys.executable, "-m", "hpcmoe", "show", str(flat)], capture_output=True, text=True)
    assert "4 ranks in groups of 2, which share their experts" in " ".join(shown.stdout.split()), shown
