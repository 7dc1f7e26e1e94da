"""Traces of whole jobs on real ranks, and what results say of their exchanges."""

import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import traces
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.engine import job as life
from hpcmoe.engine.align import Offset, aligned, measure
from hpcmoe.files import prompts, results
from hpcmoe.files.trace import beside
from hpcmoe.traffic import CLASSES

pytestmark = pytest.mark.mpi
ITEM = 4
"""Bytes of a float32."""


@pytest.fixture(scope="module")
def folder(comm, shared_tmp) -> Path:
    """A job on a model with an expert per rank, so that a token goes to each of its experts by itself."""
    shared = shared_tmp / "traces"
    if comm.rank == 0:
        shared.mkdir()
        rng = np.random.default_rng(1)
        spec = replace(TINY, moe=replace(TINY.moe, experts=comm.size, top_k=min(2, comm.size)))
        (shared / "spec.toml").write_text(tables.dump(spec))
        prompts.write(shared / "p.h5", list("abcde"), [rng.integers(0, 97, n).astype(np.int32)
                                                           for n in (3, 9, 1, 5, 2)])
        (shared / "job.toml").write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "o.h5"\n')
    launch.meet(comm)
    return shared


def run(comm, folder: Path, output: str, *overrides: str, traced: bool = True) -> Path:
    """Runs the job on all ranks."""
    settings = (f"output='{folder / output}'", "generate.max_new_tokens=4", "compute.dtype=float32",
                "exchange.mode=alltoallv", *overrides)
    world = launch.start()
    job = launch.on_root(world, lambda: config.load(folder / "job.toml", settings))
    world = launch.with_nodes(world, job.parallel.ranks_per_node)
    life.run(world, job, overwrite=False, traced=traced)
    return Path(job.output)


def moved(output: Path, by: str = "layer") -> np.ndarray:
    """Bytes by layer or step, and class."""
    with h5py.File(output) as file:
        return file[f"exchange/{by}/bytes"][:]


@pytest.mark.many_ranks("overlapped")
@pytest.mark.parametrize("schedule", ["serial", "overlapped"])
def test_a_job_is_traced(comm, folder, everywhere, schedule):
    output = run(comm, folder, f"{schedule}.h5", f"schedule.mode={schedule}", "schedule.micro_batches=2",
                 "exchange.mode=auto")
    problems = []
    if comm.rank == 0:
        trace = traces.read(beside(output))
        problems = traces.wrong(trace, comm.size) + missing(trace, output) + unlikely(trace)
        sums = np.zeros((TINY.layers, len(CLASSES)), np.int64)
        for e in traces.spans(trace, "exchange"):
            sums[e["args"]["layer"]] += [e["args"][f"bytes to {there}"] for there in CLASSES]
        if not np.array_equal(sums, moved(output)):
            problems.append(f"bytes of the trace {sums} and of the results {moved(output)}")
    everywhere(problems)


def missing(trace: dict, output: Path) -> list[str]:
    """Exchanges that are not there once on each rank, and rows that are empty."""
    with h5py.File(output) as file:
        steps = len(file["timings/step"])
    ranks = trace["traceEvents"][-1]["pid"] + 1
    found: dict = defaultdict(int)
    for e in traces.spans(trace, "exchange"):
        found[e["pid"], e["name"], e["args"]["step"], e["args"]["layer"], int(e["row"].split()[1])] += 1
    expected = {(rank, kind, step, layer, number) for rank in range(ranks) for kind in ("dispatch", "return")
                for step in range(steps) for layer in TINY.moe_layers for number in (0, 1)}
    problems = [f"no {key}" for key in expected - found.keys()] + [f"{key} more than once" for key in found
                                                                    if found[key] > 1]
    told = {(e["row"], e["name"]) for e in traces.spans(trace)}
    wanted = {("step", "step"), ("pack", "pack"), ("wait", "vote"), ("wait", "start"), ("wait", "counts"),
              *(("compute", name) for name in ("attention", "gate", "expert", "combine", "head"))}
    return problems + [f"nothing is {name} on row {row}" for row, name in wanted - told]


def unlikely(trace: dict) -> list[str]:
    """Rows that have arrived before a peer began to say how many it sends: the clocks of two ranks disagree."""
    tolerance = 2 * max(trace["otherData"]["clock_within_us"]) + 1
    begun: dict = defaultdict(float)
    ended: dict = defaultdict(lambda: np.inf)
    for e in traces.spans(trace, "exchange"):
        key = e["args"]["step"], e["args"]["layer"], e["row"]
        if e["name"] == "dispatch":
            begun[key] = max(begun[key], e["ts"])
        ended[e["name"], key] = min(ended[e["name"], key], e["end"])
    return [f"{kind} of {key} ends at {end} us, a peer began at {begun[key]} us"
            for (kind, key), end in ended.items() if end < begun[key] - tolerance]


def test_bytes_are_those_of_the_rows_of_the_load(comm, folder, everywhere):
    """A row to an expert and its answer for each choice of a token, own rows included."""
    output = run(comm, folder, "bytes.h5", traced=False)
    problems = ["traced"] if beside(output).exists() else []
    if comm.rank == 0:
        with h5py.File(output) as file:
            rows = file["load"][:].sum(axis=1)
        if moved(output).sum(axis=1).tolist() != (2 * rows * TINY.hidden * ITEM).tolist():
            problems.append(f"{moved(output)} bytes of {rows} rows")
        if not np.array_equal(moved(output).sum(axis=0), moved(output, "step").sum(axis=0)):
            problems.append("steps and layers differ")
    everywhere(problems)


def test_bytes_are_told_by_node(comm, folder, everywhere):
    """The same job on one node, on pairs of ranks, and on a node for each rank."""
    found = {ranks: run(comm, folder, f"nodes-of-{ranks}.h5", f"parallel.ranks_per_node={ranks}")
             for ranks in (max(comm.size, 3), 2, 1)}
    problems = []
    if comm.rank == 0:
        own, near, far = (np.array([moved(path).sum(axis=0)[n] for path in found.values()]) for n in range(3))
        others = near[0]
        right = (len(set(own)) == 1 and (near + far == others).all() and near[2] == far[0] == 0
                 and (comm.size < 2 or others > 0) and (comm.size < 3 or 0 < near[1] < others))
        problems = [] if right else [f"own {own}, near {near}, far {far}"]
    everywhere(problems)


@pytest.mark.many_ranks("overlapped")
@pytest.mark.parametrize("schedule", ["serial", "overlapped"])
def test_seconds_are_those_of_the_waits(comm, folder, everywhere, schedule):
    output = run(comm, folder, f"seconds-{schedule}.h5", f"schedule.mode={schedule}", traced=False)
    problems = []
    if comm.rank == 0:
        with h5py.File(output) as file:
            steps = results.steps(file, output)
            layers, exposed = file["exchange/layer/seconds"][:], file["exchange/layer/exposed"][:]
        t = steps.traffic
        right = {"exposed": t.exposed.sum() > 0 and (schedule == "overlapped" or (t.exposed > 0).all()),
                 "exposed in a step": (t.exposed >= 0).all() and (t.exposed <= t.seconds).all(),
                 "exposed in a layer": (exposed >= 0).all() and (exposed <= layers).all(),
                 "within the step": (t.seconds <= steps.wall * 1.001).all(),
                 "layers": np.isclose(layers.sum(), t.seconds.sum()) and layers[0] == 0 and (layers[1:] > 0).all()}
        problems = [name for name, is_right in right.items() if not is_right]
    everywhere(problems)


def test_clocks_that_differ_are_set(comm, everywhere):
    """Ranks whose clocks began hours apart and run differently fast; all are on one node, so the truth is known."""
    drift, asked = 1e-2 * (comm.rank > 0), []

    def mine(now: float) -> float:
        return 3600.0 * comm.rank + now * (1 + drift)

    def read() -> float:
        asked.append(time.perf_counter())
        return mine(asked[-1])

    def measured() -> tuple[Offset, float]:
        """And how long this rank was asked: so long its clock drifted meanwhile."""
        asked.clear()
        return measure(comm, launch.rest, read), asked[-1] - asked[0]

    first, long = measured()
    begin = time.perf_counter()
    time.sleep(0.2)
    end = time.perf_counter()
    last, longer = measured()
    off = aligned(np.array([mine(begin), mine(end)]), first, last) - [begin, end]
    limit = 2 * max(first.within, last.within) + drift * max(long, longer) + 1e-5
    everywhere([] if (abs(off) <= limit).all() else [f"{off} s off, more than {limit}"])


def test_clocks_of_one_node_are_one(comm, everywhere):
    found = measure(comm, launch.rest)
    everywhere([] if found.ahead == 0 else [f"{found}"])


def test_a_trace_of_what_was_left(comm, folder, everywhere):
    """Of a job that is done already nothing is written."""
    output = run(comm, folder, "twice.h5", traced=False)
    launch.meet(comm)
    run(comm, folder, "twice.h5")
    everywhere(["a trace of nothing"] if beside(output).exists() else [])
