"""Where seconds and bytes of an exchange are counted: what is under way, what is waited for, what hides it."""

import threading
import time

import numpy as np
import pytest

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.stream import AtOnce, Event, Worker
from hpcmoe.engine.trip import Trip, classes
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES

SENT = np.array([10, 20, 30])
EXCHANGE = STAGES.index("exchange")


class Flight:
    """Arrives when it is told to."""

    stage = "exchange"

    def __init__(self):
        self.there, self.waits = False, 0

    def test(self):
        return self.there

    def wait(self):
        self.there, self.waits = True, self.waits + 1


@pytest.fixture
def now(monkeypatch):
    """`now(3)`: three seconds pass."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])

    def passes(span):
        seconds[0] += span

    return passes


@pytest.fixture
def stream(now):
    """`stream.works(3)`: three seconds pass in which it works."""

    class Given:
        done = 0.0

        def busy(self):
            return self.done

        def works(self, span):
            self.done += span
            now(span)

    return Given()


@pytest.fixture
def clock(stream):
    return Clock(3, stream.busy)


def depart(clock, flight, layer=1, micro_batch=0, kind="dispatch"):
    return clock.depart(flight, kind, layer, micro_batch, 5, lambda: SENT)


def seconds(clock):
    """Under way, and exposed, by layer."""
    found = clock.read_traffic()
    return found.seconds.tolist(), found.exposed.tolist()


class TestTrip:
    """A flight with a beginning and an end."""

    def test_the_first_test_that_sees_it_is_its_end(self, now):
        flight, landed = Flight(), []
        trip = Trip(flight, "return", 2, 1, landed.append)
        now(1)
        assert not trip.test() and not landed
        flight.there = True
        now(1)
        assert trip.test()
        now(5)
        assert trip.test()
        trip.wait()
        assert (trip.begin, trip.end, landed) == (100.0, 102.0, [trip])

    def test_a_wait_is_its_end_too(self, now):
        flight, landed = Flight(), []
        trip = Trip(flight, "return", 2, 1, landed.append)
        now(3)
        trip.wait()
        assert trip.end == 103.0 and landed == [trip]

    def test_what_a_wait_does_beyond_arriving_is_done(self):
        """Rows are valid behind `wait`, also where `test` saw them first."""
        flight = Flight()
        flight.there = True
        trip = Trip(flight, "return", 2, 1, lambda trip: None)
        assert trip.test()
        trip.wait()
        assert flight.waits == 1


class TestWaits:
    """What is exposed."""

    def test_a_wait_in_which_nothing_is_computed(self, clock, now):
        trip = depart(clock, Flight())
        with clock.starting(trip):
            now(2)
        with clock.waiting(trip):
            now(3)
            trip.wait()
        assert seconds(clock) == ([0, 5, 0], [0, 5, 0])
        assert clock.read()[EXCHANGE] == 5

    def test_what_the_stream_works_hides_it(self, clock, now, stream):
        trip = depart(clock, Flight())
        with clock.waiting(trip):
            stream.works(3)
            now(1)
            trip.wait()
        assert seconds(clock) == ([0, 4, 0], [0, 1, 0])

    def test_what_is_computed_before_the_wait_hides_it(self, clock, now):
        trip = depart(clock, Flight())
        with clock.stage("expert"):
            now(3)
        with clock.waiting(trip):
            now(1)
            trip.wait()
        assert seconds(clock) == ([0, 4, 0], [0, 1, 0])

    def test_behind_the_end_nothing_is_exposed(self, clock, now):
        flight = Flight()
        trip = depart(clock, flight)
        flight.there = True
        now(2)
        assert trip.test()
        with clock.waiting(trip):
            now(4)
        assert seconds(clock) == ([0, 2, 0], [0, 0, 0])

    def test_the_time_of_two_counts_once_and_for_the_older(self, clock, now):
        one, two = depart(clock, Flight(), 1), depart(clock, Flight(), 2, 1)
        with clock.waiting(one):
            now(3)
            one.wait()
        now(1)
        with clock.waiting(two):
            now(2)
            two.wait()
        assert seconds(clock) == ([0, 3, 3], [0, 3, 2])

    def test_the_younger_may_arrive_first(self, clock, now):
        one, two = depart(clock, Flight(), 1), depart(clock, Flight(), 2, 1)
        now(1)
        two.wait()
        now(2)
        one.wait()
        now(7)
        assert seconds(clock) == ([0, 3, 0], [0, 0, 0])

    def test_a_wait_counts_for_those_that_are_the_oldest_in_it(self, clock, now, stream):
        """Old answers land a second into a wait of five for the counts of the next layer."""
        old, new = depart(clock, Flight(), 1, kind="return"), depart(clock, Flight(), 2, 1)
        with clock.waiting(Flight()):
            now(1)
            old.wait()
            stream.works(1)
            now(3)
        new.wait()
        assert seconds(clock) == ([0, 1, 4], [0, 1, 3])
        assert clock.read()[EXCHANGE] == 5

    def test_waiting_for_the_stream_is_no_exchange(self, clock, now):
        with clock.waiting(Event()):
            now(2)
        assert not clock.read().any() and seconds(clock) == ([0, 0, 0], [0, 0, 0])

    def test_a_vote_counts_as_a_stage_only(self, clock, now):
        with clock.voting():
            now(2)
        assert clock.read()[EXCHANGE] == 2 and seconds(clock) == ([0, 0, 0], [0, 0, 0])

    def test_what_was_read_is_counted_no_more(self, clock, now):
        depart(clock, Flight()).wait()
        assert clock.read_traffic().bytes[1].tolist() == SENT.tolist()
        assert not clock.read_traffic().bytes.any()


class TestStreams:
    """What hides a wait."""

    def test_at_once_works_in_front_of_the_caller(self):
        stream = AtOnce()
        stream.run(time.sleep, 0.01)
        assert stream.busy() == 0

    def test_a_worker_counts_up_to_now(self):
        stream, begun = Worker(), threading.Event()
        before = stream.busy()
        event = stream.run(lambda: begun.set() or time.sleep(0.05))
        begun.wait()
        during = stream.busy()
        event.wait()
        stream.run(lambda: None).wait()
        after = stream.busy()
        time.sleep(0.02)
        assert before == 0 and 0 < during < after and after >= 0.05 and stream.busy() == after
        stream.close()

    def test_work_that_fails_ends(self):
        stream = Worker()
        with pytest.raises(ZeroDivisionError):
            stream.run(lambda: 1 / 0).wait()
        stream.close()
        assert stream.busy() == stream.busy()


@pytest.mark.parametrize("rank, sums", [(0, [1, 2, 12]), (1, [2, 1, 12]), (3, [8, 4, 3])])
def test_rows_are_told_by_the_node_they_go_to(rank, sums):
    assert (classes((0, 0, 1, 1), rank) @ np.array([1, 2, 4, 8])).tolist() == sums


def test_hidden_is_a_part_of_the_time_under_way():
    found = Traffic(np.array([4.0, 0.0, 2.0]), np.array([1.0, 0.0, 2.0]), np.zeros((3, 3), np.int64))
    np.testing.assert_array_equal(found.hidden, [0.75, np.nan, 0])
    assert float(found.total().hidden) == 0.5
