"""A traced job: every exchange on every rank, on one clock; and the traffic in its results."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.engine import job as life
from hpcmoe.engine import trace
from hpcmoe.files import prompts
from hpcmoe.report.run import summary

pytestmark = pytest.mark.mpi
SETTINGS = ("compute.dtype=float32", "generate.max_new_tokens=4", "generate.ignore_eos=true",
            "schedule.max_sequences=2")


def run(comm, folder: Path, name: str, schedule: str, nodes: tuple[int, ...]) -> Path:
    """A traced job on ranks of these nodes; its output."""
    path = folder / "traced.toml"
    if comm.rank == 0:
        (folder / "traced-spec.toml").write_text(tables.dump(TINY))
        prompts.write(folder / "traced-p.h5", list("abcdefgh"), [np.arange(n + 1, dtype=np.int32) for n in range(8)])
        path.write_text('model = "traced-spec.toml"\nprompts = "traced-p.h5"\noutput = "traced.h5"\n')
    comm.Barrier()
    job = config.load(path, (*SETTINGS, f"schedule.mode={schedule}"))
    output = folder / f"traced-{name}.h5"
    job = replace(job, output=str(output))
    life.run(replace(launch.start(), nodes=nodes), job, False, output.with_suffix(".trace.json"))
    comm.Barrier()
    return output


@pytest.mark.parametrize("schedule", ["serial", "overlapped"])
def test_every_rank_and_exchange_is_there_on_one_clock(comm, shared_tmp, everywhere, schedule):
    output = run(comm, shared_tmp, schedule, schedule, (0,) * comm.size)
    problems = []
    if comm.rank == 0:
        events = [e for e in json.loads(output.with_suffix(".trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
        names = {e["name"] for e in events}
        if not names >= {"attention", "gate", "pack", "expert", "combine", "head", "dispatch", "return"}:
            problems.append(f"only {names}")
        flights = [e for e in events if e["name"] in ("dispatch", "return") and "rows" in e["args"]]
        keys = [(e["pid"], e["name"], *(e["args"][k] for k in ("step", "layer", "micro_batch"))) for e in flights]
        steps = 1 + max(e["args"]["step"] for e in flights)
        if sorted(Counter(keys).values()) != [1] * (comm.size * 2 * steps * len(TINY.moe_layers) * 2):
            problems.append(f"{len(keys)} exchanges in {steps} steps")
        begun: dict = {}
        for key, e in zip(keys, flights):
            begun.setdefault(key[1:], []).append(e)
        for key, those in begun.items():  # nothing arrives everywhere before all have sent
            if max(e["ts"] for e in those) > max(e["ts"] + e["dur"] for e in those) + 100:
                problems.append(f"{key} arrived before it left")
        for rank, row in {(e["pid"], e["tid"]) for e in events}:
            there = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if (e["pid"], e["tid"]) == (rank, row))
            if any(later[0] < earlier[1] - 0.01 for earlier, later in itertools.pairwise(there)):
                problems.append(f"spans of row {row} of rank {rank} overlap")
    everywhere(problems)


def test_bytes_by_class_are_those_of_the_rows(comm, shared_tmp, everywhere):
    """Every second rank is on another node."""
    output = run(comm, shared_tmp, "bytes", "serial", tuple(rank % 2 for rank in range(comm.size)))
    problems = []
    if comm.rank == 0:
        with h5py.File(output) as file:
            load, sizes = file["load"][:], file["exchange/layer/bytes"][:]
            home = load.sum(axis=1) * TINY.hidden * 4
            total = sizes.sum(axis=1)
            both = total >= 2 * home if comm.size >= TINY.experts else total > home  # there, and trailers; and home
            if not both[1:].all() or total[0] != 0:
                problems.append(f"{sizes.tolist()} for {load.tolist()}")
            if not np.array_equal(sizes.sum(axis=0), file["exchange/step/bytes"][:].sum(axis=0)):
                problems.append("layers and steps differ")
            if (sizes[:, 2] > 0).any() != (comm.size > 1) or (sizes[:, 1] > 0).any() != (comm.size > 2):
                problems.append(f"classes {sizes.tolist()}")
            for over in ("step", "layer"):
                hidden = file[f"exchange/{over}/hidden"][:]
                if not ((hidden >= 0) & (hidden <= 1)).all():
                    problems.append(f"hidden {hidden}")
            if [n.decode() for n in file["exchange/class"]] != ["own rank", "same node", "other nodes"]:
                problems.append("classes have other names")
        if "hidden" not in summary(output):
            problems.append("the summary does not tell")
    everywhere(problems)


def test_a_full_trace_says_where_it_ends(comm, shared_tmp, everywhere, monkeypatch, capfd):
    monkeypatch.setattr(trace, "LIMIT", 40 * comm.size)
    output = run(comm, shared_tmp, "full", "overlapped", tuple(range(comm.size)))
    problems = []
    if comm.rank == 0:
        events = json.loads(output.with_suffix(".trace.json").read_text())["traceEvents"]
        if sum(e["ph"] == "X" for e in events) != 40 * comm.size or "the trace is full" not in capfd.readouterr().err:
            problems.append("nothing is said")
    everywhere(problems)
