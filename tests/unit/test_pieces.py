"""Shards of experts: what each rank reads of a tensor, where rows go, and what comes of the parts of answers."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import MOE, Given, assert_one_line, command, job_files, model_file
from hypothesis import given
from hypothesis import strategies as st
from test_route import nodes_of, placements

from hpcmoe import config, spec
from hpcmoe.array import DTYPES, FLOAT32
from hpcmoe.config import Job, Parallel
from hpcmoe.engine import replan
from hpcmoe.engine.memory import Sizes, plan_memory
from hpcmoe.engine.seats import place
from hpcmoe.errors import JobError
from hpcmoe.exchange.grid import grid
from hpcmoe.exchange.replicas import even, exact, near, spread
from hpcmoe.exchange.route import plan_receive, plan_send, trailer_width
from hpcmoe.exchange.route_far import plan_send_far
from hpcmoe.files import pieces
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile
from hpcmoe.kernels.combine import combine
from hpcmoe.model import weights
from hpcmoe.model.heads import cut
from hpcmoe.placement.plan import linear, repeated
from hpcmoe.slots import Piece, Placement, Shard, piece

BIASED = replace(MOE, moe=replace(MOE.moe, hidden=11, expert_bias=True))
"""Experts of an odd width, with biases."""


@given(width=st.integers(1, 99), of=st.integers(1, 12))
def test_shards_are_cut_as_numpy_cuts_arrays(width, of):
    found = [Shard(number, of).span(width) for number in range(of)]
    assert [list(range(*span)) for span in found] == [part.tolist() for part in np.array_split(np.arange(width), of)]


def whole(source, tensor: spec.Tensor) -> np.ndarray:
    return np.concatenate(list(source.blocks(tensor)))


@pytest.mark.parametrize("of", [2, 3, 11])
@pytest.mark.parametrize("kind", ["file", "drawn", "given"])
def test_pieces_have_the_values_of_the_whole(tmp_path, monkeypatch, kind, of):
    """Also where blocks begin and end anywhere."""
    monkeypatch.setattr("hpcmoe.files.model.BLOCK", 40)
    source = {"drawn": Drawn, "given": Given}.get(kind, Drawn)(BIASED, seed=3)
    if kind == "file":
        source = ModelFile(model_file(tmp_path, BIASED))
    for tensor in spec.layer_tensors(BIASED, 1):
        if tensor.expert is None:
            assert piece(tensor, Shard(1, of)) is tensor
            continue
        found = [piece(tensor, Shard(number, of)) for number in range(of)]
        if tensor.kind == "experts/down_bias":
            assert found == [tensor] + [None] * (of - 1)
            continue
        read = [np.concatenate(list(pieces.blocks(source, part))) for part in found]
        assert [part.shape for part in read] == [part.shape for part in found]
        if tensor.kind == "experts/down":
            assert np.array_equal(np.hstack(read), whole(source, tensor))
        else:
            halves = [np.concatenate([np.split(part, 2)[half] for part in read]) for half in (0, 1)]
            assert np.array_equal(np.concatenate(halves), whole(source, tensor))


def test_shards_add_up_to_the_bytes_of_the_whole():
    def size(shard: Shard) -> dict[str, int]:
        return weights.size(BIASED, lambda layer: [0, 2], lambda t: t.values, cut(BIASED, shard, Shard()))
    parts, all_of_it = [size(Shard(n, 3)) for n in range(3)], size(Shard())
    assert sum(part["experts"] for part in parts) == all_of_it["experts"]
    assert all({**part, "experts": 0} == {**all_of_it, "experts": 0} for part in parts)
    assert parts[0]["experts"] == max(part["experts"] for part in parts)


def test_a_rank_keeps_its_shard_only():
    source = Drawn(BIASED, 3)
    loaded = [weights.load(source, lambda layer: [3, 1], FLOAT32, cut=cut(BIASED, Shard(n, 2), Shard()))
              .layers[1].experts for n in (0, 1)]
    assert [[(e.gate_up.shape, e.down.shape, e.gate_up_bias.shape) for e in shard] for shard in loaded] == [
        [((12, 16), (16, 6), (12,))] * 2, [((10, 16), (16, 5), (10,))] * 2]
    assert [shard[0].down_bias is None for shard in loaded] == [False, True]


@st.composite
def cases(draw):
    """A placement on groups of t ranks, the nodes of its ranks, and on each rank the experts of some tokens or of none,
    any or the same ones, and the slots that they go to."""
    shards, on_groups = draw(st.integers(2, 4)), draw(placements(12, 4))
    placement, E = on_groups.cut(shards), len(on_groups.copies)
    nodes, K = draw(nodes_of(placement.ranks)), draw(st.integers(1, min(E, 5)))
    rng, skew = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans())
    expert = [np.array([np.arange(K) if skew else rng.permutation(E)[:K] for _ in range(rng.choice([0, 1, 6]))],
                       np.int32).reshape(-1, K) for _ in range(placement.ranks)]
    slots = []
    for me, chosen in enumerate(expert):
        to = near(placement, nodes, me)
        slots.append(spread(chosen, to, even(np.bincount(chosen.ravel(), minlength=E), placement)))
    return placement, nodes, expert, slots


@given(cases())
def test_groups_hold_what_one_rank_of_whole_experts_held(case):
    placement, _, _, _ = case
    before, t = placement.grouped, placement.shards
    assert np.array_equal(before.cut(t).rank, placement.rank) and before.most == placement.most
    assert all(placement.held_by(r) == before.held_by(r // t) for r in range(placement.ranks))


@given(cases())
def test_each_shard_answers_each_token_and_k(case):
    """All ranks of an exchange by hand: each answer says who computed which part of what for whom."""
    placement, _, expert, slots = case
    R, t, width = placement.ranks, placement.shards, trailer_width(placement.most, expert[0].shape[1])
    sends = [plan_send(slot, placement, width) for slot in slots]
    home = [[[] for _ in range(R)] for _ in range(R)]
    for rank in range(R):
        counts, held = np.array([s.counts[rank] for s in sends]), placement.held_by(rank)
        parts = [slice(s.counts[:rank].sum(), s.counts[:rank + 1].sum()) for s in sends]
        token = np.concatenate([s.token[p] for s, p in zip(sends, parts)])
        plan = plan_receive(counts, np.concatenate([s.trailer[p] for s, p in zip(sends, parts)]), len(held))
        source, slot = np.repeat(np.arange(R), counts), np.repeat(np.arange(len(held)), plan.slot_counts)
        answers = [None] * len(plan.row)
        for s, row, at in zip(slot, plan.row, plan.place):
            answers[at] = (int(source[row]), int(token[row]), held[s], rank)
        ends = np.cumsum(plan.home_counts)
        for src in range(R):
            home[src][rank] = answers[ends[src] - plan.home_counts[src]:ends[src]]
    for src, (chosen, slot, send) in enumerate(zip(expert, slots, sends)):
        came = [a for h in home[src] for a in h]
        assert [len(h) for h in home[src]] == send.home_counts.tolist()
        assert send.home.shape == (len(slot), slot.shape[1] * t)
        for (token, k), at in np.ndenumerate(slot):
            assert [came[a] for a in send.home[token, k * t:(k + 1) * t]] == [
                (src, token, chosen[token, k], placement.rank[at] + s) for s in range(t)]


@given(cases(), st.data())
def test_in_two_hops_the_same_ranks_get_the_same_rows(case, data):
    placement, nodes, _, slots = case
    me = data.draw(st.integers(0, placement.ranks - 1))
    flat = plan_send(slots[me], placement, trailer_width(placement.most, slots[me].shape[1]))
    far = plan_send_far(slots[me], None, placement, grid(nodes), me)
    assert far.home.shape == flat.home.shape
    assert all(np.array_equal(a, b) for a, b in zip(far.behind, (flat.counts, flat.home_counts)))


@given(cases())
def test_exact_shares_keep_their_bound_on_groups(case):
    placement, nodes, expert, _ = case
    E = len(placement.copies)
    counts = np.array([np.bincount(chosen.ravel(), minlength=E) for chosen in expert])
    total = np.zeros(len(placement.rank), np.int64)
    for me in range(placement.ranks):
        to = near(placement, nodes, me)
        shares = exact(counts, placement, nodes, me, to)
        assert np.array_equal(shares.sum(axis=1), counts[me])
        np.add.at(total, to.slot[to.slot >= 0], shares[to.slot >= 0])
    copies = placement.copies[placement.expert]
    assert (total <= -(-counts.sum(axis=0)[placement.expert] // copies)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("round_each", [False, True])
@given(T=st.integers(0, 4), K=st.integers(1, 3), shards=st.integers(1, 4), seed=st.integers(0, 999))
def test_parts_are_added_in_their_order_and_rounded_once(dtype, round_each, T, K, shards, seed):
    rng, kind = np.random.default_rng(seed), DTYPES[dtype]
    rows = rng.standard_normal((T * K * shards + 3, 5)).astype(np.float32)
    home = rng.permutation(len(rows))[:T * K * shards].reshape(T, K * shards).astype(np.int32)
    weight = rng.random((T, K), np.float32)
    want = np.zeros((T, 5), np.float32)
    for t in range(T):
        for k in range(K):
            answer = np.zeros(5, np.float32)
            for part in home[t, k * shards:(k + 1) * shards]:
                answer = (answer + rows[part]).astype(np.float32)
            one = weight[t, k] * answer.astype(kind).astype(np.float32)
            want[t] += one.astype(kind).astype(np.float32) if round_each else one
    if shards > 1:
        assert np.array_equal(combine(rows, home, weight, round_each, kind), want.astype(kind))


def test_groups_need_whole_groups_and_wide_experts():
    job = Job("m", "p", "o", parallel=Parallel(expert_tensor=3))
    assert place(MOE, 12, job)[1].shards == 3 and place(replace(MOE, moe=None, dense=spec.Dense(4, 3)), 5, job)
    with pytest.raises(JobError, match="5 ranks are no groups of 3: start a multiple of 3"):
        place(MOE, 5, job)
    with pytest.raises(JobError, match="are 2 wide, and cannot be cut"):
        place(replace(MOE, moe=replace(MOE.moe, hidden=2)), 12, job)


@pytest.mark.parametrize("words", [("exchange.mode=twohop", "exchange.presum=true"), ("checkpoint.on_failure=shrink",)])
def test_what_does_not_go_with_shards_is_refused(tmp_path, words):
    path = tmp_path / "job.toml"
    path.write_text('model = "m.h5"\nprompts = "p.h5"\noutput = "o.h5"\n')
    config.load(path, words)
    with pytest.raises(JobError, match=r"parallel.expert_tensor = 2: .*(leave out|set) (exchange|checkpoint)\."):
        config.load(path, ("parallel.expert_tensor=2", *words))


def test_last_bits_belong_to_the_number_of_shards():
    plain, cut = (Job("m", "p", "o", parallel=Parallel(expert_tensor=t)) for t in (1, 2))
    assert plain.identity() == cut.identity()
    plain, cut = (replace(job, compute=replace(job.compute, reproducible=True)) for job in (plain, cut))
    assert plain.identity() != cut.identity()


def test_moving_experts_keep_to_their_groups():
    before = repeated(2, 4).cut(2)
    move, = replan.plan([before], np.array([[10, 90]]))
    assert move.after.shards == 2 and move.after.grouped.copies.tolist() == [1, 3]
    assert [move.comes(rank) for rank in (0, 1)] == [move.comes(0)] * 2 and move.slots == 1


@pytest.mark.parametrize("memory", ["host", "device"])
def test_memory_of_shards(memory):
    """Half of an expert, and twice as many answers, each of float32."""
    job, sizes = Job("m", "p", "o"), Sizes(4, 64, 64)
    one, two = (plan_memory(MOE, replace(job, parallel=Parallel(expert_tensor=t)), [linear(4, 4).cut(t)] * 3, sizes,
                            memory) for t in (1, 2))
    assert two.weights["experts"] * 2 == one.weights["experts"]
    assert two.exchange > 2 * one.exchange and two.requests > one.requests


def test_check_tells_of_shards(tmp_path, capsys, monkeypatch):
    job = job_files(tmp_path, 3, rest="[parallel]\nexpert_tensor = 2\n")
    found = command(capsys, monkeypatch, "check", job, "--ranks", 8)
    assert found.code == 0 and "1 of 2 shards of each" in " ".join(found.out.split())
    assert_one_line(command(capsys, monkeypatch, "check", job, "--ranks", 7), 2, "7 ranks are no groups of 2")


def test_a_piece_is_a_tensor_of_its_own_shape():
    down = next(t for t in spec.layer_tensors(BIASED, 1) if t.kind == "experts/down")
    part = piece(down, Shard(1, 2))
    assert isinstance(part, Piece) and (part.kind, part.expert, part.layer) == (down.kind, down.expert, down.layer)
    assert part.values == 16 * 5 and part.whole == down.shape


def test_placements_of_groups_name_their_first_ranks():
    placement = Placement(2, np.array([0, 0, 1], np.int32), np.array([2, 0, 1], np.int32)).cut(2)
    assert placement.rank.tolist() == [0, 0, 2] and placement.first.tolist() == [0, 2, 2, 3, 3]
    assert [placement.held_by(r) for r in range(4)] == [[2, 0], [2, 0], [1], [1]]
