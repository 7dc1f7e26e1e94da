"""Where tokens went: samples, and what parts and results keep of it."""

import h5py
import numpy as np
import pytest
from helpers import answer, damage, origin, pack, put_part, step_time
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.engine.sample import Sample
from hpcmoe.errors import InputError
from hpcmoe.files import parts, results, routing
from hpcmoe.files.parts import Part
from hpcmoe.slots import Routing
from hpcmoe.types import SAMPLED, sampled


@given(st.integers(0, 2000))
def test_sampled_tokens_are_far_apart(tokens):
    rows = sampled(tokens)
    assert len(rows) == min(tokens, SAMPLED) and (np.diff(rows) >= tokens // SAMPLED).all()
    assert not len(rows) or (rows[0] == 0 and rows[-1] < tokens)


@given(st.integers(0, 40), st.integers(1, 300))
def test_a_sample_has_tokens_of_the_whole_time(room, steps):
    sample = Sample(room, (1, 1))
    for step in range(steps):
        sample.add(np.full((2, 1, 1), step, np.int16))
    kept = sample.experts()[:, 0, 0]
    assert min(room, 2 * steps) >= len(kept) >= min(room // 4, 2 * steps)
    if room >= 8:
        *gaps, last = np.diff([*np.unique(kept), steps])
        assert kept[0] == 0 and len({*gaps}) <= 1 and last <= max(gaps, default=steps)


def part(rank: int, ranks: int, rows: int, n: int) -> Part:
    return Part((answer(rank, 5),), np.full((2, 4), rows, np.int64), (step_time(0),), 0, None,
                np.full(2, rows), np.full((n, 2, 3), rank, np.int16), rank, ranks)


def test_results_tell_where_the_tokens_of_each_rank_went(tmp_path):
    output = tmp_path / "o.h5"
    for rank, (rows, n) in enumerate([(3, 2), (5, 1)]):
        parts.write(output, 0, rank, 0, part(rank, 2, rows, n), origin())
    pack(output, 2)
    found = results.routing(output)
    assert found.load[:, 0].tolist() == [[3] * 4] * 2 and found.load[:, 1].tolist() == [[5] * 4] * 2
    assert found.computed.tolist() == [[3, 5]] * 2
    assert found.rank.tolist() == [0, 0, 1] and found.expert[:, 1, 2].tolist() == [0, 0, 1]


@pytest.mark.parametrize("ranks, right", [(2, True), (4, True), (3, False), (1, False)])
def test_packed_shards_have_as_many_ranks_as_one_of_them_or_its_multiple(ranks, right, tmp_path):
    output = tmp_path / "o.h5"
    for rank in range(2):
        parts.write(output, 0, rank, 0, part(rank, 2, 3, 1), origin())
    pack(output, 2)
    damage(output, lambda file: file.attrs.__setitem__("ranks", ranks))
    if right:
        assert results.routing(output).computed.shape == (2, 2)
    else:
        with pytest.raises(InputError, match="is of 2 ranks"):
            results.routing(output)


def test_other_numbers_of_ranks_do_not_count():
    some = np.ones((2, 4), np.int64), np.ones(2, np.int64), np.zeros((1, 2, 3), np.int16)
    assert routing.gather([(0, *some), (1, *some)], 2).load.sum(axis=2).tolist() == [[4, 4]] * 2


def test_a_large_table_is_of_all_ranks_together(monkeypatch):
    monkeypatch.setattr(routing, "LARGEST", 15)
    found = routing.gather([(rank, np.ones((2, 4), np.int64), np.ones(2, np.int64), np.zeros((2, 2, 3), np.int16))
                            for rank in (0, 1)], 2)
    assert found.load.tolist() == [[[2] * 4]] * 2 and found.rank.tolist() == [0, 0, 1, 1]


def test_few_enough_tokens_are_kept(monkeypatch):
    monkeypatch.setattr(routing, "SAMPLES", 5)
    found = routing.thin(Routing(np.zeros((1, 1, 1)), np.arange(9), np.arange(9).reshape(9, 1, 1), np.zeros((1, 1))))
    assert found.rank.tolist() == found.expert[:, 0, 0].tolist() == [0, 1, 3, 5, 7]


def test_shards_are_joined_where_they_can_be():
    one = Routing(np.ones((2, 3, 4)), np.zeros(1, np.int32), np.zeros((1, 2, 3), np.int16), np.ones((2, 3)))
    other = Routing(np.ones((2, 2, 4)), np.zeros(1, np.int32), np.zeros((1, 2, 3), np.int16), np.ones((2, 2)))
    both = routing.join([one, one])
    assert both and both.load.sum() == 48 and len(both.rank) == len(both.expert) == 2
    assert routing.join([one, other]) is None and routing.join([one, None]) is None


WRONG = {
    "negative rows": ("routing/load", lambda data: data - 10),
    "an expert that is not there": ("routing/expert", lambda data: data + 9),
    "a rank that is not there": ("routing/rank", lambda data: data + 2),
    "ranks of other tokens": ("routing/rank", lambda data: data[:-1]),
    "other layers": ("routing/expert", lambda data: data[:, :1]),
    "rows of other ranks": ("routing/computed", lambda data: data[:, :1]),
    "other ranks": ("routing/load", lambda data: np.repeat(data, 2, axis=1)),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_does_not_fit_is_refused(tmp_path, which):
    output, (name, change) = tmp_path / "o.h5", WRONG[which]
    for rank in range(2):
        parts.write(output, 0, rank, 0, part(rank, 2, 3, 2), origin())
    pack(output, 2)

    def alter(file: h5py.File) -> None:
        data = change(file[name][:])
        del file[name]
        file[name] = data
    damage(output, alter)
    with pytest.raises(InputError, match="make the file again"):
        results.routing(output)


def test_a_file_that_does_not_tell(tmp_path):
    output = tmp_path / "o.h5"
    put_part(output, 0, 0, 0, [answer(0, 5)], [step_time(0)])
    pack(output, 1)
    with pytest.raises(InputError, match="does not tell where its tokens went"):
        results.routing(output)
