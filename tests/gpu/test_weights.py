"""Weights that come to the GPU by a shorter way have the bits of those that go through float32 on the host."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from models import TINY, VARIANTS

from hpcmoe import array, spec
from hpcmoe.engine import device
from hpcmoe.errors import InputError
from hpcmoe.files import model
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile
from hpcmoe.model import weights
from hpcmoe.model.heads import cut
from hpcmoe.slots import Shard
from hpcmoe.spec import Tensor

pytestmark = pytest.mark.gpu
WIDE = replace(TINY, hidden=513, vocabulary=4096, layers=2)
"""No row of its embedding begins where 16 bytes do."""


class Given:
    """A model with one tensor that is given. A `files.model.Source`, and one that has no shorter way."""

    tokenizer = chat = ""

    def __init__(self, spec, name="", values=None) -> None:
        self.spec, self._name, self._values = spec, name, values

    def blocks(self, tensor):
        """See `Source`."""
        return iter([self._values]) if tensor.name == self._name else Drawn(self.spec, 3).blocks(tensor)


def two_experts(spec):
    """As many as there are, and not in order. A `weights.Held`."""
    return lambda layer: [1, 0][-spec.experts:]


def arrays(found, name="weights"):
    """(name, array) of all that `Weights` hold, on the host."""
    if is_dataclass(found):
        for field in fields(found):
            yield from arrays(getattr(found, field.name), f"{name}.{field.name}")
    elif isinstance(found, tuple):
        for number, part in enumerate(found):
            yield from arrays(part, f"{name}[{number}]")
    else:
        yield name, None if found is None else found.get()


def assert_as_through_float32(source, dtype, shard=Shard()):
    from hpcmoe.device.weights import keep
    held = two_experts(source.spec)
    kept = cut(source.spec, shard, Shard())
    want = list(arrays(weights.load(source, held, array.DTYPES[dtype], keep, cut=kept)))
    got = list(arrays(device.load(source, held, array.DTYPES[dtype], "device", kept)))
    assert [name for name, _ in got] == [name for name, _ in want] and len(got) > 10
    for (name, ours), (_, theirs) in zip(got, want):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
            assert ours.tobytes() == theirs.tobytes(), name


@pytest.mark.parametrize("part", ["attention", "embedding"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16), (97, 37), (4099, 129), (1, 4096), (257, 16), (300, 7168)])
def test_drawn_on_the_device(shape, part):
    from hpcmoe.device.drawn import draw
    for seed in (0, 2**31 + 5):
        tensor = Tensor(f"layers/001/{part}", shape, part)
        want = np.concatenate([array.narrow(block) for block in Drawn(TINY, seed).blocks(tensor)])
        got = draw(Drawn(TINY, seed), tensor)
        assert got.dtype == np.uint16 and np.array_equal(got.get(), want)


@pytest.mark.parametrize("dtype", array.DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_drawn_model(name, dtype):
    assert_as_through_float32(Drawn(VARIANTS[name], 3), dtype)


@pytest.mark.parametrize("block", [1, 1000, 1 << 15, 1 << 22])
@pytest.mark.parametrize("stored", array.DTYPES)
@pytest.mark.parametrize("dtype", array.DTYPES)
@pytest.mark.parametrize("name", ["tiny", "attention extras", "sigmoid groups", "chosen softmax", "no experts"])
def test_a_model_file(name, dtype, stored, block, tmp_path, monkeypatch):
    model.write(tmp_path / "m.h5", Given(VARIANTS[name]), stored)
    monkeypatch.setattr(model, "BLOCK", block)
    assert_as_through_float32(ModelFile(tmp_path / "m.h5"), dtype)


@pytest.mark.parametrize("block", [100, 1 << 22])
@pytest.mark.parametrize("stored", [*array.DTYPES, ""])
@pytest.mark.parametrize("number", [0, 2])
def test_shards_of_experts(number, stored, block, tmp_path, monkeypatch):
    """Of a file, or drawn."""
    source = Given(TINY)
    monkeypatch.setattr(model, "BLOCK", block)
    if stored:
        model.write(tmp_path / "m.h5", source, stored)
    assert_as_through_float32(ModelFile(tmp_path / "m.h5") if stored else Drawn(TINY, 3), "bfloat16", Shard(number, 5))


@pytest.mark.parametrize("stored", array.DTYPES)
def test_many_blocks_take_turns(stored, tmp_path, monkeypatch):
    """Of many sizes, of odd rows, over memory that others had before."""
    import cupy
    model.write(tmp_path / "m.h5", Given(WIDE), stored)
    monkeypatch.setattr(model, "BLOCK", 1 << 14)
    for _ in range(3):
        cupy.full(1 << 24, 7, np.uint16)
        assert_as_through_float32(ModelFile(tmp_path / "m.h5"), "bfloat16")


def test_rounding_is_to_nearest_even(tmp_path):
    """Every kind of float32 that is a number, halves between two bfloat16 and those near infinity too."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (97, 32), np.uint32)
    bits[::2] = bits[::2] & 0xFFFF0000 | rng.choice(np.uint32([0x7FFF, 0x8000, 0x8001, 0]), bits[::2].shape)
    bits[bits >> 23 & 0xFF == 0xFF] &= 0x807FFFFF
    bits[0, :4] = 0x7F7FFFFF, 0xFF7FFFFF, 1, 0x80000000
    model.write(tmp_path / "m.h5", Given(TINY, "head", bits.view(np.float32)), "float32")
    assert_as_through_float32(ModelFile(tmp_path / "m.h5"), "float32")


def test_other_sources_have_no_shorter_way():
    from hpcmoe.device.weights import bringing
    with bringing(Given(TINY)) as bring:
        assert bring is None
    assert_as_through_float32(Given(TINY), "bfloat16")


@pytest.mark.parametrize("stored", array.DTYPES)
@pytest.mark.parametrize("name", ["embedding", "layers/002/ffn_norm", "layers/003/experts/001/down"])
def test_what_is_no_number_is_found(name, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "BLOCK", 100)
    shape = next(t.shape for t in spec.tensors(TINY) if t.name == name)
    values = np.ones(shape, np.float32)
    values.flat[-1] = np.nan
    path = tmp_path / "m.h5"
    model.write(path, Given(TINY, name, values), stored)
    with pytest.raises(InputError) as failure:
        device.load(ModelFile(path), two_experts(TINY), array.BFLOAT16, "device")
    assert str(failure.value) == f"{path}: {name} has values that are NaN or infinite"
    model.write(path, Given(TINY), stored)
    assert_as_through_float32(ModelFile(path), "bfloat16")
