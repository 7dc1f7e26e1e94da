"""Dispatch, a made-up expert, and return between real ranks on made-up nodes: in two hops as flat."""

from collections import Counter
from collections.abc import Generator, Iterator
from typing import ClassVar

import numpy as np
import pytest
from conductor import Alarm
from hops import H, Seen, expert, grids, placements, run, sent_by, step, steps, tokens
from mpi4py import MPI
from rig import WAYS

from hpcmoe import array, launch
from hpcmoe.exchange import headers, persistent, staged, tune_hops
from hpcmoe.exchange.grid import grid
from hpcmoe.exchange.interface import Flight
from hpcmoe.exchange.lane import Lane, Way, open_lanes
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.requests import make_even, make_request
from hpcmoe.exchange.route import plan_send, trailer_width
from hpcmoe.exchange.route_far import plan_send_far
from hpcmoe.exchange.twohop import Relayed, TwoHops, open_twohop
from hpcmoe.kernels.combine import combine
from hpcmoe.placement.plan import linear
from hpcmoe.slots import Placement

pytestmark = pytest.mark.mpi
BFLOAT16, FLOAT32 = array.BFLOAT16, array.FLOAT32


@pytest.fixture
def alarm(comm, monkeypatch) -> Iterator[Alarm]:
    """Rungs that would be too large give way to exact counts, and staged pieces are of few rows."""
    monkeypatch.setattr(persistent, "MOST", comm.size * 64 * 40)
    monkeypatch.setattr(staged, "PIECE", comm.size * 16 * 60)
    alarm = Alarm(comm)
    yield alarm
    if not alarm.broken:
        alarm.free()


def verdict(problems: list[str]) -> None:
    """The same on all ranks."""
    __tracebackhide__ = True
    if problems:
        pytest.fail("\n".join(problems[:6]), pytrace=False)


@pytest.mark.many_ranks("alltoallv-staged", "persistent-device")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.mode}-{way.transport}")
def test_two_hops_give_the_bits_of_one(comm, alarm, way):
    """Rows that are computed and their order, counts, answers, and the bytes that each rank counts."""
    R, me = comm.size, comm.rank

    def play() -> list[str]:
        problems, modes = [], set()
        flat, = open_lanes(comm, alarm.idle, way, 1)
        for number, (name, nodes) in enumerate(grids(R).items()):
            placement, found = placements(R)[number % 4], grid(nodes)
            K = min(len(placement.copies), (1, 3, 8, 4)[number // 2])
            width, (lane,) = trailer_width(placement.most, K), open_twohop(comm, alarm.idle, way, Relayed(found, K), 1)
            for layer, slots in zip(range(8 if R < 8 else 4), steps(placement, K, number)):
                x, weight = tokens(me, layer, slots[me], (BFLOAT16, FLOAT32)[number % 2])
                alarm.mark()
                want = run(flat, plan_send(slots[me], placement, width), x, weight, placement, me)
                got = run(lane, plan_send_far(slots[me], None, placement, found, me), x, weight, placement, me)
                modes.add(lane.home.mode)
                problems += [f"{name}, layer {layer}: other {what}" for what in ("rows", "counts", "y")
                             if getattr(want, what).tobytes() != getattr(got, what).tobytes()]
                size = np.array([[x.itemsize * H + 2 * Relayed(found, K).width], [x.itemsize * H]])
                rows = np.array([lane.dispatch.sent, lane.home.sent]) / size
                if (rows != sent_by(slots, placement, found, me, False)).any():
                    problems.append(f"{name}, layer {layer}: counted {rows.tolist()}")
            lane.free()
        flat.free()
        if (way.mode != "alltoallv") != any("persistent" in mode for mode in modes):
            problems.append(f"rows travelled by {modes}")
        return problems
    verdict(alarm.together(play))


@pytest.mark.many_ranks("alltoallv-device-bfloat16", "auto-staged-float32")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("way", [WAYS[0], WAYS[5]], ids=lambda way: f"{way.mode}-{way.transport}")
def test_sums_of_nodes_come_home(comm, alarm, way, dtype):
    """Bit by bit those of NumPy that round at the same points, and within `Presum`'s bound of the exact ones."""
    R, me = comm.size, comm.rank
    u = 2.0**-8 if dtype == BFLOAT16 else 2.0**-24

    def reference(x: np.ndarray, weight: np.ndarray, slot: np.ndarray, node: np.ndarray, most: int) -> list[str]:
        T, K = slot.shape
        answers = expert(np.repeat(x, K, axis=0), slot.ravel()).reshape(T, K, H).astype(np.float32)
        total, error = np.zeros((2, T, H), np.float32)
        for m in range(int(node.max(initial=-1)) + 1):
            part = np.zeros((T, H), np.float32)
            for k in range(K):
                part += np.where(node[:, k, None] == m, weight[:, k, None] * answers[:, k], 0)
            total += part.astype(dtype).astype(np.float32)
            error += u * abs(part)
        exact = weight[..., None].astype(np.float64) * answers
        far = abs(total - exact.sum(axis=1)) > error + (K + most) * 2.0**-23 * abs(exact).sum(axis=1)
        return total.astype(dtype), far.any()

    def play() -> list[str]:
        problems = []
        for number, (name, nodes) in enumerate(grids(R).items()):
            placement, found = placements(R)[number % 4], grid(nodes)
            K = min(len(placement.copies), 8)
            lane, = open_twohop(comm, alarm.idle, way, Relayed(found, K, Presum(dtype)), 1)
            for layer, slots in zip(range(5 if R < 8 else 3), steps(placement, K, number)):
                x, weight = tokens(me, layer, slots[me], dtype)
                alarm.mark()
                plan = plan_send_far(slots[me], weight, placement, found, me)
                got = run(lane, plan, x, np.ones(plan.home.shape, np.float32), placement, me)
                want, far = reference(x, weight, slots[me], found.node[placement.rank[slots[me]]], found.nodes)
                if want.tobytes() != got.y.tobytes() or far:
                    problems.append(f"{name}, layer {layer}: {'far off' if far else 'other bits'}")
                size = np.array([[x.itemsize * H + 2 * plan.trailer.shape[1]], [x.itemsize * H]])
                rows = np.array([lane.dispatch.sent, lane.home.sent]) / size
                if (rows != sent_by(slots, placement, found, me, True)).any():
                    problems.append(f"{name}, layer {layer}: counted {rows.tolist()}")
            lane.free()
        return problems
    verdict(alarm.together(play))


def take_turns(trips: list[Generator[Flight, None, None]], rng: np.random.Generator, alarm: Alarm) -> None:
    """Starts in turn, as all ranks do; looks at whichever, in an order of this rank's own."""
    flights = {n: next(trip) for n, trip in enumerate(trips)}
    while flights:
        for n in list(flights):
            alarm.mark()
            while not flights[n].test():
                flights[int(rng.choice(list(flights)))].test()
                alarm.idle()
            flights[n] = next(trips[n], None)
            if flights[n] is None:
                del flights[n]


def beside(lane: Lane, number: int, presum: bool, placement: Placement, K: int, nodes: tuple[int, ...], me: int,
           problems: list[str]) -> Generator[Flight, None, None]:
    """Layer after layer on one of several lanes; answers are compared with their definition."""
    for layer, slots in zip(range(6 if placement.ranks < 8 else 3), steps(placement, K, number)):
        slot, seen = slots[me], Seen()
        x, weight = tokens(me, layer, slot, FLOAT32)
        plan = plan_send_far(slot, weight if presum else None, placement, grid(nodes), me)
        y = combine(expert(np.repeat(x, K, axis=0), slot.ravel()),
                    np.arange(slot.size, dtype=np.int32).reshape(slot.shape), weight)
        yield from step(lane, plan, x, np.ones(plan.home.shape, np.float32) if presum else weight, placement, me, seen)
        if not (np.allclose(seen.y, y, rtol=1e-5, atol=1e-4) if presum else np.array_equal(seen.y, y)):
            problems.append(f"{nodes}, lane {number}, layer {layer}")


@pytest.mark.many_ranks("persistent-staged", "auto-device")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.mode}-{way.transport}")
def test_lanes_beside_each_other_never_wait_for_each_other(comm, alarm, monkeypatch, way):
    """Three, of which one sums; ranks look at them in other orders. Staged pieces are many."""
    monkeypatch.setattr(staged, "PIECE", 256)
    R, me = comm.size, comm.rank

    def play() -> list[str]:
        problems, rng, placement, K = [], np.random.default_rng(me), linear(R + 1, R), min(4, R + 1)
        for nodes in (grids(R)["two"], grids(R)["ragged"]):
            lanes = [lane for presum, count in ((None, 2), (Presum(FLOAT32), 1))
                     for lane in open_twohop(comm, alarm.idle, way, Relayed(grid(nodes), K, presum), count)]
            take_turns([beside(lane, n, n == 2, placement, K, nodes, me, problems) for n, lane in enumerate(lanes)],
                       rng, alarm)
            for lane in lanes:
                lane.free()
        return problems
    verdict(alarm.together(play))


@pytest.mark.parametrize("name, flat, far", [("two", 4.0, 1.0), ("four", 6.0, 2.88)])
def test_rows_between_nodes_for_each_token(comm, everywhere, name, flat, far):
    """One expert a rank, K half of them, uniform routing: at 16 ranks what the seed asks for."""
    R, me, T = comm.size, comm.rank, 250
    K, placement, found = max(1, R // 2), linear(R, R), grid(grids(R)[name])
    slot = np.random.default_rng(me).random((T, R)).argsort(axis=1)[:, :K].astype(np.int32)
    x, weight = tokens(me, 0, slot, BFLOAT16)
    per_token = {}
    for presum in (None, Presum(BFLOAT16)):
        lane, = open_twohop(comm, launch.rest, Way("alltoallv"), Relayed(found, K, presum), 1)
        plan = plan_send_far(slot, weight if presum else None, placement, found, me)
        run(lane, plan, x, np.ones(plan.home.shape, np.float32) if presum else weight, placement, me)
        rows = lane.dispatch.sent[2] / (2 * H + 2 * plan.trailer.shape[1]), lane.home.sent[2] / (2 * H)
        per_token[presum is not None] = np.array(comm.allreduce(np.array(rows))) / (T * R)
        lane.free()
    other = found.node[placement.rank[slot]] != found.node[me]
    one = comm.allreduce(int(other.sum())) / (T * R)
    want = {False: (far, flat), True: (far, far)} if R == 16 else {}
    problems = [f"{presum}: {per_token[presum]}" for presum, rows in want.items()
                if not np.allclose(per_token[presum], rows, rtol=0.02)]
    if not (np.isclose(per_token[False][1], one) and per_token[True][0] == per_token[True][1]):
        problems.append(f"flat {one}: {per_token}")
    everywhere(problems)


@pytest.mark.parametrize("presum", [None, Presum(FLOAT32)], ids=["rows", "sums"])
def test_both_are_measured_alike_on_all_ranks(comm, everywhere, presum):
    R, found = comm.size, grid(grids(comm.size)["two"])
    placement, K = placements(R)[2], 3
    table = tune_hops.measure(comm, launch.rest, 2 * H, WAYS[4], Relayed(found, K, presum), placement, 20, rounds=3)
    mine = np.array([table.flat, table.twohop])
    same = all((mine == other).all() for other in comm.allgather(mine))
    slot = tune_hops.uniform(placement, 50, K, 1)
    everywhere([] if same and table.rows.tolist() == [1, 4, 16] and (mine > 0).all()
               and all(len(set(placement.expert[row])) == K for row in slot) else [f"{table}"])


class Counted(MPI.Intracomm):
    """Tells how many of its kind are there."""

    live: ClassVar[Counter[str]] = Counter()

    def Dup(self, *given):
        self.live["communicators"] += 1
        return Counted(super().Dup(*given))

    def Split(self, *given):
        self.live["communicators"] += 1
        return Counted(super().Split(*given))

    def Free(self):
        self.live["communicators"] -= 1
        super().Free()


class Kept:
    """A request that tells how many there are."""

    def __init__(self, request) -> None:
        self.Start, self.Test, self._request = request.Start, request.Test, request
        Counted.live["requests"] += 1

    def Free(self) -> None:
        Counted.live["requests"] -= 1
        self._request.Free()


@pytest.mark.many_ranks("alltoallv-device", "persistent-staged", "auto-staged")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.mode}-{way.transport}")
def test_all_that_is_made_is_freed(comm, alarm, monkeypatch, way):
    """And what all ranks make together is not made where each comes by readiness."""
    looking, problems = [], []

    def make(*given) -> Kept:
        problems.extend("a rung was made while a rank looked" for _ in looking)
        return Kept(make_request(*given))

    def look(self) -> bool:
        looking.append(1)
        try:
            return next(self._moves, True)
        finally:
            looking.pop()
    monkeypatch.setattr(TwoHops, "test", look)
    monkeypatch.setattr(persistent, "make_request", make)
    monkeypatch.setattr(headers, "make_even", lambda *given: Kept(make_even(*given)))
    Counted.live.clear()

    def play() -> list[str]:
        R, me, most = comm.size, comm.rank, Counter()
        placement, found = linear(R, R), grid(grids(R)["two"])
        lanes = open_twohop(Counted(comm), alarm.idle, way, Relayed(found, 1), 2)
        for layer, slots in zip(range(6), steps(placement, 1, 3)):
            x, weight = tokens(me, layer, slots[me], FLOAT32)
            for lane in lanes:
                run(lane, plan_send_far(slots[me], None, placement, found, me), x, weight, placement, me)
        most.update(Counted.live)
        for lane in lanes:
            lane.free()
        left = +Counted.live
        wanted = 3 if way.mode == "persistent" else 2
        return problems + ([f"left {left} of {most}"] if left or most["requests"] < wanted else [])
    verdict(alarm.together(play))
