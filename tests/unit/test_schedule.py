"""Whose turn it is: the same order of starts however things arrive, and a stream that is never kept waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.engine import schedule
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.stream import Event
from hpcmoe.engine.trace import Untraced
from hpcmoe.engine.trip import Trip

LAYERS = 3


class Flight:
    """Arrives when `ready` says so; a limit on looks stands in for ever."""

    stage = "exchange"

    def __init__(self, ready):
        self._ready, self._looks = ready, 0

    def test(self):
        self._looks += 1
        assert self._looks < 1000, "waits for ever"
        return self._ready()

    def wait(self):
        while not self.test():
            pass


def step(turn, told, count, travel):
    """A micro-batch that tells what it does; `count()` and `travel()` make what it waits for."""
    def trip(kind):
        told.append((kind, turn))
        return Trip(travel(), kind, 0, turn, lambda trip: None)

    for _ in range(LAYERS):
        yield Event()
        told.append(("counts", turn))
        yield count(turn)
        yield trip("dispatch")
        told.append(("expert", turn))
        yield Event()
        yield trip("return")
        told.append(("leave", turn))
    yield Event()
    return f"outcome {turn}"


def run(take_turns, micro_batches, count, travel):
    told = []
    steps = [step(turn, told, lambda turn: count(turn, told), travel) for turn in range(micro_batches)]
    return take_turns(steps, Clock(), lambda: None, lambda: None), told


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_exchanges_start_in_the_same_order_however_they_arrive(micro_batches, chance):
    late = lambda *_: Flight(lambda: chance.random() < 0.3)
    outcomes, told = run(schedule.overlapped, micro_batches, late, late)
    assert outcomes == [f"outcome {turn}" for turn in range(micro_batches)]
    turns = range(micro_batches)
    expected = [(kind, turn) for _ in range(LAYERS) for kinds in (("counts", "dispatch"), ("return",))
                for turn in turns for kind in kinds]
    assert [what for what in told if what[0] not in ("expert", "leave")] == expected


def test_serial_ends_one_before_it_begins_the_next():
    _, told = run(schedule.serial, 2, lambda *_: Flight(lambda: True), lambda: Flight(lambda: True))
    assert [turn for _, turn in told] == sorted(turn for _, turn in told)


def test_rows_that_arrive_while_another_waits_for_counts_are_computed():
    """A peer whose counts are late may wait for just these rows' answers."""
    def count(turn, told):
        return Flight(lambda: turn == 0 or ("expert", 0) in told)

    _, told = run(schedule.overlapped, 2, count, lambda: Flight(lambda: True))
    assert told.index(("expert", 0)) < told.index(("dispatch", 1))


@pytest.mark.parametrize("turn", [0, 1])
def test_what_one_raises_ends_all(turn):
    def count(mine, told):
        if mine == turn:
            raise ArithmeticError
        return Flight(lambda: True)

    with pytest.raises(ArithmeticError):
        run(schedule.overlapped, 2, count, lambda: Flight(lambda: True))


class Computed(Event):
    """Ends after so many looks, and counts its naps."""

    def __init__(self, looks):
        self.left, self.naps = looks, 0

    def test(self):
        self.left -= 1
        return self.left < 0

    def nap(self, seconds):
        self.naps += 1

    def wait(self):
        pass


def one(flight):
    """A micro-batch with one wait."""
    yield flight


def test_waiting_for_its_own_arithmetic_no_rank_is_charged_with_an_exchange():
    def charged():
        raise AssertionError("as if it waited for others")

    attended = []
    schedule.overlapped([one(Computed(5)), one(Computed(0))], Clock(), charged, lambda: attended.append(1))
    assert attended


def test_naps_are_of_what_is_still_computed():
    """The second one ended long ago."""
    late, done, running = Flight(lambda: late._looks > 20), Computed(0), Computed(100)
    schedule.overlapped([one(late), one(done), one(running)], Clock(), lambda: None, lambda: None)
    assert not done.naps and running.naps > 10


def test_what_is_raised_between_two_looks_ends_the_wait_first():
    """Whoever goes on behind it, as where a rank died, finds the clock as between two waits."""
    class Told(Untraced):
        def __init__(self):
            self.open = 0

        def push(self, name):
            self.open += 1

        def pop(self, *span):
            self.open -= 1

    def fails():
        raise ArithmeticError

    told = Told()
    late = Flight(lambda: False)
    with pytest.raises(ArithmeticError):
        schedule.overlapped([one(late), one(late)], Clock(trace=told), fails, fails)
    assert told.open == 0


def test_turns_can_be_driven_by_others():
    """Each pause tells what is waited for; the last one of a wait is of one flight only."""
    slow = Flight(lambda: slow._looks > 2)
    turns, seen = schedule.overlapped_turns([one(slow), one(Computed(0))], Clock()), []
    with pytest.raises(StopIteration) as end:
        while True:
            seen.append(len(next(turns).watched))
    assert seen[-1] == 1 and 2 in seen and end.value.value == [None, None]
