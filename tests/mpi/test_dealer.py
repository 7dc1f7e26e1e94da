"""Who gets which prompts where groups of ranks share a pool, over a network that delivers when it likes."""

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from hpcmoe.engine.dealer import DOWN, STOP, UP, Dealer, Line
from hpcmoe.engine.pool import in_turn
from hpcmoe.engine.post import Pulse
from hpcmoe.engine.stock import Stock
from hpcmoe.errors import DeviceError
from hpcmoe.files.prompts import Prompts
from hpcmoe.notice import TOLD
from hpcmoe.types import Begun

pytestmark = [pytest.mark.mpi, pytest.mark.many_ranks]  # its ranks are threads


class Network:
    """Messages between threads, each delivered some milliseconds after it was sent, in order from one to another."""

    def __init__(self, seed: int) -> None:
        self.lock, self.rng = threading.Lock(), np.random.default_rng(seed)
        self.under_way: dict[tuple[int, int, int], deque] = {}
        self.sent: list[tuple[int, np.ndarray]] = []


class Comm:
    """What the dealing asks of a communicator, seen from one rank."""

    def __init__(self, network: Network, rank: int) -> None:
        self.network, self.rank = network, rank

    def Isend(self, buffer, to, tag):
        with self.network.lock:
            at = time.monotonic() + self.network.rng.choice([0, 0.001, 0.004])
            self.network.under_way.setdefault((self.rank, to, tag), deque()).append((at, buffer.copy()))
            self.network.sent.append((tag, buffer.copy()))
        return type("Request", (), {"Test": lambda self: time.monotonic() >= at})()

    def Iprobe(self, source, tag, status) -> bool:
        with self.network.lock:
            for (sender, to, tagged), queue in self.network.under_way.items():
                if (to, tagged) == (self.rank, tag) and source in (sender, MPI.ANY_SOURCE) and queue and (
                        queue[0][0] <= time.monotonic()):
                    status.source = sender
                    status.Set_elements(MPI.INT64_T, len(queue[0][1]))
                    return True
        return False

    def Recv(self, values, source, tag) -> None:
        with self.network.lock:
            values[...] = self.network.under_way[source, self.rank, tag].popleft()[1]


@dataclass
class Group:
    """A group of one rank, with some slots, in a thread."""

    number: int
    slots: int
    seconds: float
    """of a step"""
    ends_at: int
    """the step before which it has notice to end; -1 for none"""
    stock: Stock
    dealt: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    stopped: bool = False

    def run(self) -> None:
        """As `generate` does."""
        rng, stock, boundary = np.random.default_rng(self.number), self.stock, 0
        for boundary in itertools.count():
            stock.look()
            reason = stock.told or (1 if boundary == self.ends_at else 0)
            news = stock.news
            stock.attend()  # as in the vote's wait
            stock.hear(news, lambda mine, count: np.array(mine, np.int64))
            count = min(self.slots - len(self.active), len(stock))
            if not count and not self.active and stock.ended:
                break
            if reason:
                self.stopped = True
                break
            tasks = stock.take(count)
            self.dealt += [task.prompt for task in tasks]
            self.active += [task.prompt for task in tasks]
            stock.want(self.slots - len(self.active), len(self.active), 2 * len(self.answered), self.seconds)
            if not self.active:
                stock.nap()
                continue
            time.sleep(self.seconds)
            stock.attend()
            ended = [prompt for prompt in self.active if rng.random() < 0.4]
            self.answered += ended
            self.active = [prompt for prompt in self.active if prompt not in ended]
        stock.leave(self.stopped)


def play(prompts: int, begun: set[int], slots: list[int], slow: int, seed: int, ends: tuple[int, int] = (0, -1),
         seconds: float = 0.004) -> tuple[list[Group], Dealer, Network]:
    """All groups to their end; `ends` are the group that has notice to end, and before which step; `seconds` those of
    a step of the slow group."""
    network = Network(seed)
    store = Prompts(np.zeros(prompts, np.int32), np.arange(prompts + 1), ("",) * prompts)
    left = [Begun(row, np.zeros(1, np.int32), np.zeros(1, np.float32)) for row in begun]
    names = {rank: f"rank {rank}" for rank in range(len(slots))}
    dealer = Dealer(Comm(network, 0), lambda: None, names, 300, in_turn(range(prompts), begun))
    sources = [dealer, *(Line(Comm(network, rank), lambda: None, names[0], 300) for rank in range(1, len(slots)))]
    groups = [Group(n, slots[n], seconds if n == slow else 0.0005, ends[1] if n == ends[0] else -1,
                    Stock(store, left, source)) for n, source in enumerate(sources)]
    threads = [threading.Thread(target=group.run) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a group does not end"
    assert not any(network.under_way.values()), "messages that nobody took"
    return groups, dealer, network


SLOTS = st.lists(st.integers(1, 8), min_size=1, max_size=5)


@settings(max_examples=15)
@given(prompts=st.integers(0, 40), begun=st.sets(st.integers(0, 39), max_size=8), slots=SLOTS, slow=st.integers(0, 4),
       seed=st.integers(0, 999))
def test_each_prompt_is_dealt_once_by_as_few_messages_as_are_told(prompts, begun, slots, slow, seed):
    begun = {row for row in begun if row < prompts}
    groups, dealer, network = play(prompts, begun, slots, slow, seed)
    assert sorted(row for group in groups for row in group.answered) == list(range(prompts))
    assert not any(group.stopped or group.active for group in groups)
    others, p = len(slots) - 1, sum(len(group.dealt) for group in groups[1:])
    up, down = ([values for tag, values in network.sent if tag == which] for which in (UP, DOWN))
    q = len(up) - 2 * others
    assert q <= p + others and len(down) == q + others
    assert sum(values.nbytes for values in up) == 40 * len(up)
    assert sum(values.nbytes for values in down) == 8 * (p + 2 * others)
    assert dealer.elsewhere[:2] == (0, 2 * p)
    assert dealer.elsewhere.longest == max((group.seconds for group in groups[1:]), default=0)
    for group in groups:  # what has begun goes first, as far as one group can tell
        marks = [row in begun for row in group.dealt]
        assert marks == sorted(marks, reverse=True)


@settings(max_examples=15)
@given(prompts=st.integers(0, 60), slots=SLOTS, slow=st.integers(0, 4), seed=st.integers(0, 999),
       who=st.integers(0, 4), step=st.integers(0, 12))
def test_all_hear_of_a_notice_wherever_it_comes(prompts, slots, slow, seed, who, step):
    groups, _, _ = play(prompts, set(), slots, slow, seed, (who % len(slots), step))
    dealt = [row for group in groups for row in group.dealt]
    answered = [row for group in groups for row in group.answered]
    assert len(set(dealt)) == len(dealt) and len(set(answered)) == len(answered)
    if len(answered) < prompts:
        assert any(group.stopped for group in groups)
        told = {group.stock.told for group in groups if group.stopped and group.number != who % len(slots)}
        assert told <= {TOLD} and STOP < 0


def test_who_says_nothing_is_asked_and_then_named():
    asked = []
    pulse = Pulse("rank 4 on here", 0.05, lambda: asked.append(1))
    pulse.check()
    assert not asked
    time.sleep(0.06)
    pulse.check()
    pulse.beat()
    pulse.check()
    assert asked == [1]
    time.sleep(0.06)
    pulse.check()
    pulse.check()
    assert asked == [1, 1]
    time.sleep(0.06)
    with pytest.raises(DeviceError, match=r"^rank 4 on here, .* said nothing for 0 s, and does not answer"):
        pulse.check()


def test_a_quick_group_gets_more_than_a_slow_one_and_no_stock_is_left_for_the_end():
    groups, _, _ = play(200, set(), [4, 4], 1, 3, seconds=0.04)
    assert len(groups[0].answered) > 2 * len(groups[1].answered)
    groups, _, _ = play(200, set(), [4, 4], 0, 3, seconds=0.04)
    assert len(groups[1].answered) > 2 * len(groups[0].answered)
