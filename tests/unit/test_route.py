"""Plans of sending and receiving, and placements, against their definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.exchange.replicas import even, near, spread
from hpcmoe.exchange.route import TRAILER, plan_receive, plan_send, trailer_width
from hpcmoe.launch import number
from hpcmoe.placement.plan import inherit, linear, with_spare
from hpcmoe.slots import Placement


@st.composite
def placements(draw, most_experts: int = 20, most_ranks: int = 9):
    """Experts in order over the ranks; sometimes with replicas, anywhere but two of one expert on a rank."""
    E, R = draw(st.integers(1, most_experts)), draw(st.integers(1, most_ranks))
    placement = linear(E, R)
    rng, more = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([0, 0, 1, 5, 40]))
    held = {(int(r), int(e)) for r, e in zip(placement.rank, placement.expert)}
    held |= {(int(rng.integers(R)), int(rng.integers(E))) for _ in range(more)}
    rank, expert = np.array(sorted(held), np.int32).T
    return Placement(R, rank, expert)


@st.composite
def nodes_of(draw, ranks: int):
    """The node of each of so many ranks."""
    names = draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    return number(names)


@st.composite
def routes(draw):
    """A placement, the width of its trailers, and on each of its ranks the experts `[T, K]` of some tokens, and the
    slots that they go to: experts are random, all the same, or of no tokens at all."""
    placement = draw(placements())
    E, R = len(placement.copies), placement.ranks
    nodes = draw(nodes_of(R))
    K = draw(st.integers(1, min(E, 10)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    skew = draw(st.booleans())
    found = []
    for me in range(R):
        T = draw(st.sampled_from([0, 1, 2, 7]))
        expert = np.array([np.arange(K) if skew else rng.permutation(E)[:K] for _ in range(T)], np.int32).reshape(T, K)
        counts = np.bincount(expert.ravel(), minlength=E)
        found.append((expert, spread(expert, near(placement, nodes, me), even(counts, placement))))
    return placement, trailer_width(placement.most, K), found


@given(E=st.integers(1, 300), R=st.integers(1, 300))
def test_linear_placement_is_even(E, R):
    placement = linear(E, R)
    held = np.diff(placement.first)
    assert held.sum() == E and held.max() - held.min() <= 1 and placement.most == held.max()
    assert [e for r in range(R) for e in placement.held_by(r)] == list(range(E))
    assert (placement.rank[placement.slot] == placement.rank).all()


@given(E=st.integers(1, 60), R=st.integers(2, 40), data=st.data())
def test_those_that_live_keep_what_they_hold_and_share_the_rest(E, R, data):
    before = linear(E, R)
    living = sorted(data.draw(st.sets(st.integers(0, R - 1), min_size=1, max_size=R)))
    after = inherit(before, living)
    held = [after.held_by(rank) for rank in range(len(living))]
    kept = [before.held_by(rank) for rank in living]
    assert all(now[:len(then)] == then for now, then in zip(held, kept))
    assert sorted(e for now in held for e in now) == list(range(E)) and after.ranks == len(living)
    grown = [len(now) for now, then in zip(held, kept) if len(now) > len(then)]
    assert not grown or max(grown) <= min(map(len, held)) + 1


@given(E=st.integers(1, 60), R=st.integers(2, 40))
def test_there_is_room_for_the_experts_of_any_rank(E, R):
    before = linear(E, R)
    room = with_spare([before])[0].most
    assert all(inherit(before, [r for r in range(R) if r != dead]).most <= room for dead in range(R))


@given(routes())
def test_rows_leave_once_for_each_rank_in_the_order_of_rank_and_token(case):
    placement, width, found = case
    for _, slot in found:
        plan = plan_send(slot, placement, width)
        rank = placement.rank[slot]
        want = sorted({(int(rank[t, k]), t) for t in range(len(rank)) for k in range(rank.shape[1])})
        assert plan.token.tolist() == [t for _, t in want]
        assert plan.counts.tolist() == [sum(r == at for r, _ in want) for at in range(placement.ranks)]
        assert plan.trailer.shape[1] % TRAILER == 0 and (plan.trailer.shape[1] > 0) == (placement.most > 1)


@given(routes())
def test_every_answer_comes_home_to_its_token_and_its_k(case):
    """All ranks of an exchange by hand: each answer says who computed what for whom."""
    placement, width, found = case
    R = placement.ranks
    sends = [plan_send(slot, placement, width) for _, slot in found]
    home = [[[] for _ in range(R)] for _ in range(R)]  # [source][rank]: answers in the order of return
    for rank in range(R):
        held = placement.held_by(rank)
        counts = np.array([s.counts[rank] for s in sends])
        parts = [slice(s.counts[:rank].sum(), s.counts[:rank + 1].sum()) for s in sends]
        token = np.concatenate([s.token[p] for s, p in zip(sends, parts)])
        trailer = np.concatenate([s.trailer[p] for s, p in zip(sends, parts)])
        plan = plan_receive(counts, trailer, len(held))
        source = np.repeat(np.arange(R), counts)
        slot = np.repeat(np.arange(len(held)), plan.slot_counts)
        order = [(s, source[r], token[r]) for s, r in zip(slot, plan.row)]
        assert order == sorted(order)
        answers = [None] * len(plan.row)
        for s, row, place in zip(slot, plan.row, plan.place):
            answers[place] = (int(source[row]), int(token[row]), held[s])
        ends = np.cumsum(plan.home_counts)
        for src in range(R):
            home[src][rank] = answers[ends[src] - plan.home_counts[src]:ends[src]]
    for src, ((expert, _), send) in enumerate(zip(found, sends)):
        assert [len(h) for h in home[src]] == send.home_counts.tolist()
        arrived = [a for h in home[src] for a in h]
        T, K = expert.shape
        assert all(arrived[send.home[t, k]] == (src, t, expert[t, k]) for t in range(T) for k in range(K))
