"""The trace: what is recorded, how much of it, and the file that others read."""

import errno
import itertools
import os
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import traces

from hpcmoe import launch
from hpcmoe.engine.align import Offset, aligned, measure
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.trace import Trace, Untraced, open_trace
from hpcmoe.errors import JobError
from hpcmoe.exchange.interface import Flight
from hpcmoe.files import trace
from hpcmoe.files.trace import NAMES, ROWS, SPAN, RankTrace
from hpcmoe.traffic import CLASSES

ALONE = SimpleNamespace(rank=0, size=1)
SENT = np.arange(len(CLASSES))


def world(rank=0):
    return SimpleNamespace(rank=rank, size=2, hosts=("here", "there"))


def recorded(limit=100, steps=3, spans=5):
    """A trace of some steps, each with as many spans on the row "compute"."""
    found = Trace(limit)
    found.align(ALONE, launch.spin)
    for found.step in range(steps):
        for _ in range(spans):
            found.push("gate")
            begin = time.perf_counter()
            found.pop("compute", "gate", begin, time.perf_counter(), 1, 0, 7)
    found.step = steps
    found.align(ALONE, launch.spin)
    return found


def given(*spans, rank=0, steps=1):
    """What a rank recorded: (row, name, begin, end, micro-batch)."""
    values = [(begin, end, 0, 0, 9, 2, mb, ROWS.index(row), NAMES.index(name)) for row, name, begin, end, mb in spans]
    return RankTrace(rank, f"host {rank}", np.array(values, SPAN), steps, steps, 1e-6)


class TestRecording:
    """On one rank."""

    def test_spans_are_kept_with_all_that_is_known_of_them(self):
        found = recorded().mine(world())
        assert (found.rank, found.host, found.steps, found.of, len(found.spans)) == (0, "here", 3, 3, 15)
        assert found.spans["step"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert set(found.spans["rows"]) == {7} and (found.spans["end"] >= found.spans["begin"]).all()

    @pytest.mark.parametrize("limit, whole", [(15, 3), (14, 2), (10, 2), (9, 1), (3, 0)])
    def test_a_full_trace_says_which_steps_are_whole(self, limit, whole):
        found = recorded(limit).mine(world())
        assert (len(found.spans), found.steps, found.of) == (min(limit, 15), whole, 3)

    def test_two_threads_lose_nothing(self):
        found = Trace(20_000)

        def work(row):
            for _ in range(10_000):
                found.pop(row, "gate", 1.0, 2.0)

        threads = [threading.Thread(target=work, args=(row,)) for row in ("compute", "wait")]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        found._offsets = [Offset(0.0, 0.0, 0.0)] * 2
        assert np.bincount(found.mine(world()).spans["row"]).tolist() == [0, 10_000, 0, 10_000]

    def test_ranks_share_the_limit(self):
        assert len(open_trace(4)._spans) == 250_000

    def test_nothing_is_recorded_without_it(self):
        nothing = Untraced()
        nothing.push("gate")
        nothing.pop("compute", "gate", 0.0, 1.0)
        nothing.finish(nothing.start("return"), "exchange", "return", 0.0, 1.0, 1, 0, 4, lambda: SENT)
        assert not vars(nothing)


class TestRanges:
    """NVTX."""

    def test_the_same_names_are_ranges(self, monkeypatch):
        seen = []
        domain = SimpleNamespace(
            get_event_attributes=str,
            push_range=lambda name: seen.append(f"push {name}"),
            pop_range=lambda: seen.append("pop"),
            start_range=lambda name: seen.append(f"start {name}") or 77,
            end_range=lambda number: seen.append(f"end {number}"),
        )
        monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(get_domain={"hpcmoe": domain}.get))
        clock = Clock(3, trace=Trace(10))
        with clock.stage("gate"):
            pass
        trip = clock.depart(Arrives(), "dispatch", 1, 0, 4, lambda: SENT)
        with clock.starting(trip):
            pass
        trip.wait()
        assert seen == ["push gate", "pop", "start dispatch", "push start", "pop", "end 77"]

    def test_the_package_takes_them(self):
        pytest.importorskip("nvtx", reason="not installed: nvtx")
        assert recorded()._domain is not None

    def test_it_is_not_needed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "nvtx", None)
        assert len(recorded().mine(world()).spans) == 15


class Arrives(Flight):
    """A flight that is there."""

    stage = "exchange"

    def test(self):
        return True

    def wait(self):
        pass


class TestClocks:
    """Between ranks; tests/mpi measures some."""

    def test_offsets_lie_on_a_line(self):
        first, last = Offset(10.0, 4.0, 0.0), Offset(20.0, 5.0, 0.0)
        assert aligned(np.array([10.0, 15.0, 20.0]), first, last).tolist() == [6.0, 10.5, 15.0]

    def test_one_measurement_is_enough(self):
        only = Offset(10.0, 4.0, 0.0)
        assert aligned(np.array([12.0]), only, only).tolist() == [8.0]

    def test_rank_0_has_the_clock(self):
        assert measure(ALONE, launch.spin, lambda: 3.0) == Offset(3.0, 0.0, 0.0)


class TestFile:
    """Chrome's trace event format."""

    def test_every_event_has_what_readers_need(self, tmp_path):
        ranks = [
            given(("step", "step", 0.5, 3.0, -1), ("compute", "gate", 1.0, 1.5, 0), rank=0),
            given(("exchange", "dispatch", 1.0, 2.0, 0), ("exchange", "return", 1.5, 2.5, 1), rank=1),
        ]
        assert trace.write(tmp_path / "t.json", ranks, 0.5) == (1, 1)
        found = traces.read(tmp_path / "t.json")
        assert traces.wrong(found, 2) == []
        spans = {(e["pid"], e["row"], e["name"]): e for e in traces.spans(found)}
        assert spans.keys() == {
            (0, "step", "step"), (0, "compute", "gate"), (1, "exchange 0", "dispatch"), (1, "exchange 1", "return")
        }  # fmt: skip
        assert spans[0, "compute", "gate"]["ts"] == 5e5 and spans[0, "compute", "gate"]["dur"] == 5e5
        assert spans[0, "compute", "gate"]["args"] == {"step": 0, "layer": 2, "micro_batch": 0, "rows": 9}
        assert {f"bytes to {there}" for there in CLASSES} <= spans[1, "exchange 1", "return"]["args"].keys()
        assert found["otherData"]["clock_within_us"] == [1.0, 1.0] and found["otherData"]["whole_steps"] == 1

    def test_spans_that_touch_do_not_overlap_when_rounded(self, tmp_path):
        rng = np.random.default_rng(0)
        edges = 1e5 + np.cumsum(rng.uniform(1e-9, 3e-7, 2000))  # a clock after a day, spans of nanoseconds
        touching = given(*(("wait", "vote", a, b, -1) for a, b in itertools.pairwise(edges)))
        trace.write(tmp_path / "t.json", [touching], edges[0])
        assert traces.wrong(traces.read(tmp_path / "t.json"), 1) == []

    def test_the_judge_sees_an_overlap(self, tmp_path):
        trace.write(tmp_path / "t.json", [given(("wait", "vote", 1, 2, -1), ("wait", "vote", 1.5, 2.5, -1))], 0.0)
        assert "overlap" in traces.wrong(traces.read(tmp_path / "t.json"), 1)[0]

    def test_it_covers_what_all_ranks_have(self, tmp_path):
        ranks = [replace(given(rank=n, steps=steps), of=5) for n, steps in enumerate((5, 3, 4))]
        assert trace.write(tmp_path / "t.json", ranks, 0.0) == (3, 5)

    def test_groups_of_ranks_have_steps_of_their_own(self, tmp_path):
        ranks = [given(rank=n, steps=steps) for n, steps in enumerate((5, 5, 3, 3))]
        assert trace.write(tmp_path / "t.json", ranks, 0.0) == (5, 5)
        full = [*ranks[:3], replace(ranks[3], steps=2)]
        assert trace.write(tmp_path / "t.json", full, 0.0) == (2, 5)

    def test_it_lies_beside_the_output(self, tmp_path):
        assert trace.beside(tmp_path / "a.b.h5") == tmp_path / "a.b.trace.json"

    def test_a_full_disk_is_one_line_and_leaves_nothing(self, monkeypatch, tmp_path):
        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JobError, match=r"t\.json cannot be written: No space left"):
            trace.write(tmp_path / "t.json", [given()], 0.0)
        assert not list(tmp_path.iterdir())

    def test_an_older_trace_stays_whole_until_the_new_one_is(self, tmp_path):
        def breaks():
            yield given()
            raise ValueError

        (tmp_path / "t.json").write_text("{}")
        with pytest.raises(ValueError):
            trace.write(tmp_path / "t.json", breaks(), 0.0)
        assert [p.name for p in tmp_path.iterdir()] == ["t.json"] and (tmp_path / "t.json").read_text() == "{}"
