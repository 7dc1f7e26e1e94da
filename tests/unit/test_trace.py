"""The trace file, what a trace keeps, and the arithmetic of hidden and exposed exchange."""

import json
import time

import numpy as np
import pytest

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.segments import classes
from hpcmoe.engine.stream import AtOnce, Worker
from hpcmoe.engine.trace import Trace
from hpcmoe.engine.trip import Trip
from hpcmoe.errors import JobError
from hpcmoe.files import trace
from hpcmoe.files.trace import NAMES, SPAN
from hpcmoe.types import Course

COURSE = Course("dispatch", 1, 0, 5)


def spans(*rows) -> np.ndarray:
    return np.array([(trace.row_number(row), NAMES.index(name), begin, end, 3, 1, 0, rows)
                     for row, name, begin, end, rows in rows], SPAN)


def test_the_file_is_what_viewers_read(tmp_path):
    mine = spans(("compute", "expert", 1.0, 1.5, -1), ("exchange 1", "return", 1.2, 2.0, 7))
    trace.write(tmp_path / "t.json", ["a", "b"], iter([mine, mine[:0]]))
    found = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert all({"ph", "name", "pid", "tid", "ts"} <= set(event) for event in found)
    assert {e["args"]["name"] for e in found if e["name"] == "process_name"} == {"rank 0 on a", "rank 1 on b"}
    assert {e["args"]["name"] for e in found if e["name"] == "thread_name"} == {"compute", "exchange 1"}
    sent = next(e for e in found if e["name"] == "return")
    assert (sent["ts"], sent["dur"], sent["pid"]) == (1.2e6, 0.8e6, 0)
    assert sent["args"] == {"step": 3, "layer": 1, "micro_batch": 0, "rows": 7}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(JobError, match=r"trace .* cannot be written"):
        trace.write(tmp_path / "nowhere" / "t.json", ["a"], iter([spans()]))


@pytest.mark.parametrize("name", ["compute", "pack", "wait", "exchange 0", "exchange 12"])
def test_rows_have_numbers(name):
    assert trace.row_name(trace.row_number(name)) == name


def test_waits_are_exposed_only_while_nothing_is_computed():
    stream = Worker()
    clock = Clock(2, np.zeros(1, np.int64), stream.busy)
    ran = stream.run(time.sleep, 0.1)
    with clock.waiting(COURSE):
        time.sleep(0.2)
    ran.wait()
    with clock.waiting(None):
        time.sleep(0.01)
    stages, traffic = clock.read()
    assert 0.08 < traffic.exposed[1] < 0.15 and traffic.exposed[0] == 0 and stages.sum() >= 0.2
    stream.close()


def test_a_serial_wait_is_exposed_whole():
    clock = Clock(2, np.zeros(1, np.int64), AtOnce().busy)
    with clock.waiting(COURSE):
        time.sleep(0.02)
    assert clock.read()[1].exposed[1] >= 0.02


def test_the_stream_says_how_long_it_worked():
    stream = Worker()
    stream.run(time.sleep, 0.05).wait()
    past = stream.busy()
    stream.run(time.sleep, 0.2)
    time.sleep(0.1)
    assert 0.05 <= past < 0.1 and past + 0.05 < stream.busy() < past + 0.2
    stream.close()


class Late:
    """Rows that arrive at the third look."""

    looks = 0

    def test(self) -> bool:
        self.looks += 1
        return self.looks >= 3

    def wait(self) -> None:
        self.looks = 3


def test_a_trip_ends_when_it_is_first_seen_to_have_arrived():
    clock = Clock(2, np.zeros(1, np.int64))
    trip = Trip(Late(), COURSE, clock)
    assert not trip.test() and not trip.test() and trip.test()
    once = clock.read()[1].seconds[1]
    assert trip.test() and once > 0
    trip.wait()
    assert clock.read()[1].seconds[1] == 0


class Profiler:
    """In place of nvtx."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def push_range(self, name, domain):
        self.said.append(f"{domain} {name}")

    def pop_range(self, domain):
        self.said.append("pop")

    def start_range(self, name, domain):
        self.said.append(f"{domain} {name} starts")
        return name

    def end_range(self, name):
        self.said.append(f"{name} ends")


def test_profilers_are_told_the_same_names():
    told = Profiler()
    recorder = object.__new__(Trace)
    recorder.__dict__.update(_nvtx=told, _spans=[], _room=9, _step=0)
    clock = Clock(2, np.zeros(1, np.int64), trace=recorder)
    trip = Trip(Late(), COURSE, clock)
    with clock.stage("expert", 1, 0):
        pass
    trip.wait()
    assert told.said == ["hpcmoe dispatch starts", "hpcmoe expert", "pop", "dispatch ends"]


def test_bytes_are_counted_by_class():
    assert classes(1, [0, 0, 2]).tolist() == [1, 0, 2]
    clock = Clock(2, classes(1, [0, 0, 2]))
    clock.sent(COURSE, np.array([3, 4, 5]), 10)
    clock.sent(COURSE, np.array([1, 0, 0]), 2)
    assert clock.read()[1].bytes.tolist() == [[0, 0, 0], [40, 32, 50]]
