"""Drawn weights: the same on every rank, in any block, and in a file."""

import numpy as np
import pytest
from helpers import MOE, assert_same_tensors, read_tensors, spec_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import spec
from hpcmoe.convert import checkpoint
from hpcmoe.files import model
from hpcmoe.files.drawn import Drawn, uniform
from hpcmoe.files.model import ModelFile
from hpcmoe.spec import Tensor

KEY = 12345678901234567890123456789
COUNT = 1000
WHOLE = uniform(KEY, 0, COUNT)


@given(st.integers(0, COUNT - 1), st.integers(0, COUNT))
@settings(deadline=None)
def test_any_slice_equals_that_of_the_whole(first, count):
    np.testing.assert_array_equal(uniform(KEY, first, min(count, COUNT - first)), WHOLE[first : first + count])


def test_a_slice_far_out_is_the_same_from_any_beginning():
    far = 3 * 2**40 + 5
    np.testing.assert_array_equal(uniform(KEY, far, 40)[7:], uniform(KEY, far + 7, 33))
    assert len(np.unique(uniform(KEY, far, 40))) > 30


def philox(key, counter):
    """The four words of one step of Philox 4x64-10, in Python's integers, as its authors wrote it down."""
    mask, word = 2**64 - 1, [counter, 0, 0, 0]
    low, high = key & mask, key >> 64
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * word[0], 0xCA5A826395121157 * word[2]
        word = [b >> 64 ^ word[1] ^ low, b & mask, a >> 64 ^ word[3] ^ high, a & mask]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return word


@pytest.mark.parametrize("key", [0, KEY, 2**128 - 1])
def test_the_generator_is_philox_as_a_device_computes_it(key):
    """Value v is part v % 4, from the lowest bits, of word v // 4 % 4 of step v // 16 + 1."""
    words = [word for step in range(5) for word in philox(key, step + 1)]
    values = np.float32([word >> 16 * part & 0xFFFF for word in words for part in range(4)])
    np.testing.assert_array_equal(uniform(key, 0, 80), (values - np.float32(32767.5)) * np.float32(12**0.5 / 65536))


@pytest.mark.parametrize("block", [1, 7, 16, 64, 1 << 10, 1 << 22])
def test_values_do_not_depend_on_the_block(block, monkeypatch):
    wanted = read_tensors(Drawn(MOE, 3))
    monkeypatch.setattr(model, "BLOCK", block)
    found = read_tensors(Drawn(MOE, 3))
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_blocks_are_rows_as_the_source_promises(monkeypatch):
    monkeypatch.setattr(model, "BLOCK", 50)
    for tensor in spec.tensors(MOE):
        blocks = list(Drawn(MOE, 0).blocks(tensor))
        assert all(b.dtype == np.float32 and b.shape[1:] == tensor.shape[1:] for b in blocks)
        assert sum(len(b) for b in blocks) == tensor.shape[0]


@pytest.mark.parametrize(
    "tensor, mean, deviation",
    [
        (Tensor("layers/000/attention/o", (400, 500), "attention"), 0, 500**-0.5),
        (Tensor("layers/000/experts/001/down", (700, 300), "experts", 1), 0, 300**-0.5),
        (Tensor("embedding", (400, 500), "embedding"), 0, 1),
        (Tensor("norm", (200_000,), "norm"), 1, 0.1),
    ],
    ids=["matrix", "expert", "embedding", "norm"],
)
def test_mean_and_variance_are_as_promised(tensor, mean, deviation):
    values = np.concatenate(list(Drawn(MOE, 0).blocks(tensor))).astype(np.float64)
    assert abs(values.mean() - mean) < 6 * deviation * values.size**-0.5
    assert values.std() == pytest.approx(deviation, rel=0.01)
    assert abs(values - mean).max() <= deviation * 3**0.5 * 1.0001


def test_values_are_spread_evenly():
    counts = np.histogram(uniform(KEY, 0, 160_000), bins=16, range=(-(3**0.5), 3**0.5))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # 15 degrees of freedom: 1 in 100,000


def test_neighbours_are_not_correlated():
    values = uniform(KEY, 0, 160_001).astype(np.float64)
    for lag in (1, 2, 4, 16):
        assert abs((values[:-lag] * values[lag:]).mean()) < 6 * 160_000**-0.5


def test_no_two_tensors_and_no_two_seeds_are_alike():
    seen = {values.ravel()[:8].tobytes() for seed in (0, 1) for values in read_tensors(Drawn(MOE, seed)).values()}
    assert len(seen) == 2 * len(list(spec.tensors(MOE)))


def test_the_name_and_the_seed_alone_say_what_is_drawn():
    small, large = (Tensor("head", (rows, 16), "head") for rows in (4, 9))
    a, b = (np.concatenate(list(Drawn(MOE, 5).blocks(t))) for t in (small, large))
    np.testing.assert_array_equal(a, b[:4])


def test_the_values_of_version_1_stay_what_they_are():
    """A benchmark of last year must draw the same weights."""
    values = next(Drawn(MOE, 0).blocks(Tensor("embedding", (1, 3), "embedding")))
    np.testing.assert_array_equal(values, np.float32([[1.3237491846084595, 1.4647743701934814, -1.0058611631393433]]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_init_writes_has_the_drawn_weights(dtype, tmp_path, capsys):
    path = spec_file(tmp_path / "s.toml")
    checkpoint.init(path, tmp_path / "m.h5", 9, dtype)
    found = ModelFile(tmp_path / "m.h5")
    assert found.spec == MOE and found.dtype == dtype
    assert "m.h5" in capsys.readouterr().out
    if dtype == "float32":
        assert_same_tensors(found, Drawn(MOE, 9))
    else:
        values = read_tensors(Drawn(MOE, 9))
        for name, narrow in read_tensors(found).items():
            np.testing.assert_allclose(narrow, values[name], rtol=2**-8)
