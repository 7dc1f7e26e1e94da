"""model.h5: weights that come back as they were, and what is refused."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import DENSE, MOE, Given, assert_same_tensors, byte_tokenizer, damage, model_file, read_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import array, spec, spec_table, tables
from hpcmoe.convert.upcycle import Copies
from hpcmoe.errors import InputError
from hpcmoe.files import h5, model
from hpcmoe.files.model import ModelFile, stored_blocks


class TestModel:
    """model.h5"""

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_tensors_come_back(self, dtype, tmp_path):
        values = read_tensors(ModelFile(model_file(tmp_path, dtype=dtype)))
        for name, wanted in read_tensors(Given(MOE)).items():
            if dtype == "bfloat16":
                wanted = wanted.astype(array.BFLOAT16).astype(np.float32)
            np.testing.assert_array_equal(values[name], wanted)

    def test_spec_dtype_and_tokenizer_come_back(self, tmp_path):
        found = ModelFile(model_file(tmp_path, text=True, dtype="bfloat16"))
        assert (found.spec, found.dtype, found.tokenizer) == (MOE, "bfloat16", byte_tokenizer())
        assert ModelFile(model_file(tmp_path)).tokenizer == ""

    def test_a_file_written_from_a_file_is_the_same(self, tmp_path):
        first = ModelFile(model_file(tmp_path, dtype="bfloat16"))
        model.write(tmp_path / "again.h5", first, "bfloat16")
        assert_same_tensors(first, ModelFile(tmp_path / "again.h5"))

    def test_bfloat16_is_uint16_with_an_attribute_and_plain_h5py_can_widen_it(self, tmp_path):
        head = (np.arange(300 * 16, dtype=np.float32) / 7).reshape(300, 16)
        model.write(tmp_path / "m.h5", Given(MOE, head=head), "bfloat16")
        with h5py.File(tmp_path / "m.h5") as file:
            dataset = file["head"]
            assert dataset.dtype == np.uint16 and dataset.attrs["dtype"] == "bfloat16"
            values = (dataset[()].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(values, head, rtol=2**-8)

    def test_float32_is_float32(self, tmp_path):
        with h5py.File(model_file(tmp_path)) as file:
            assert file["head"].dtype == np.float32 and file["head"].attrs["dtype"] == "float32"

    def test_the_names_are_those_of_the_layout(self, tmp_path):
        with h5py.File(model_file(tmp_path)) as file:
            assert file["layers/002/experts/003/gate_up"].shape == (16, 16)
            assert set(file["layers/000"]) == {"attention", "attention_norm", "dense", "ffn_norm"}
            assert spec_table.from_table(tables.parse(file.attrs["spec"])) == MOE

    def test_sixteen_copies_take_the_space_of_one(self, tmp_path):
        wide = replace(DENSE, dense=replace(DENSE.dense, hidden=4096))
        copies = Copies(Given(wide), 16, 2, 0)
        model.write(tmp_path / "one.h5", Given(wide), "float32")
        model.write(tmp_path / "copies.h5", copies, "float32", same=copies.same)
        one, sixteen = ((tmp_path / f"{name}.h5").stat().st_size for name in ("one", "copies"))
        assert sixteen < 1.2 * one
        with h5py.File(tmp_path / "copies.h5") as file:
            assert file["layers/001/experts/015/down"] == file["layers/001/experts/000/down"]
            assert file["layers/001/experts/000/down"] != file["layers/000/experts/000/down"]
        assert_same_tensors(ModelFile(tmp_path / "copies.h5"), copies)

    def test_a_missing_tensor_is_named(self, tmp_path):
        path = model_file(tmp_path)
        damage(path, lambda file: file.__delitem__("layers/001/experts/002/down"))
        with pytest.raises(InputError, match="tensor layers/001/experts/002/down is missing"):
            ModelFile(path)

    def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(self, tmp_path):
        def change(file):
            del file["layers/001/gate"]
            file["layers/001/gate"] = np.zeros((16, 4), np.float32)

        path = model_file(tmp_path)
        damage(path, change)
        with pytest.raises(InputError, match=r"layers/001/gate has shape \(16, 4\), the spec says \(4, 16\)"):
            ModelFile(path)

    @pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "S4"])
    def test_a_tensor_of_another_type_is_named(self, dtype, tmp_path):
        def change(file):
            del file["norm"]
            file["norm"] = np.zeros(16).astype(dtype)

        path = model_file(tmp_path)
        damage(path, change)
        with pytest.raises(InputError, match="tensor norm is"):
            ModelFile(path)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_no_numbers_are_found_when_they_are_read(self, value, dtype, tmp_path):
        path = tmp_path / "m.h5"
        norm = np.ones(16, np.float32)
        norm[11] = value
        model.write(path, Given(MOE, norm=norm), dtype)
        found = ModelFile(path)
        tensor = next(t for t in spec.tensors(MOE) if t.name == "norm")
        with pytest.raises(InputError, match="norm has values that are NaN or infinite"):
            list(found.blocks(tensor))

    def test_nan_in_the_last_block_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(model, "BLOCK", 64)
        head = np.ones((300, 16), np.float32)
        head[299, 15] = np.nan
        model.write(tmp_path / "m.h5", Given(MOE, head=head), "float32")
        tensor = next(t for t in spec.tensors(MOE) if t.name == "head")
        blocks = ModelFile(tmp_path / "m.h5").blocks(tensor)
        assert len(next(blocks)) == 4
        with pytest.raises(InputError, match="head"):
            list(blocks)

    @pytest.mark.parametrize("name", ["spec", "dtype", "uuid"])
    def test_a_missing_attribute_is_named(self, name, tmp_path):
        path = model_file(tmp_path)
        damage(path, lambda file: file.attrs.__delitem__(name))
        with pytest.raises(InputError, match=f"{name}"):
            ModelFile(path)

    @pytest.mark.parametrize(
        "text, words",
        [
            ("layers = ", "malformed"),
            ("layers = 3", "spec: name: missing"),
            ('name = "x"\nlayres = 3', "layres: unknown key"),
        ],
    )
    def test_a_spec_that_is_none_is_refused(self, text, words, tmp_path):
        path = model_file(tmp_path)
        damage(path, lambda file: file.attrs.__setitem__("spec", text))
        with pytest.raises(InputError, match=words):
            ModelFile(path)

    def test_a_tensor_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
        """As where a disk fails: HDF5 raises an OSError in the middle."""
        found = ModelFile(model_file(tmp_path))

        def broken(self, *args):
            raise OSError("Can't synchronously read data")

        monkeypatch.setattr(h5py.Dataset, "read_direct", broken)
        with pytest.raises(InputError, match="embedding cannot be read"):
            list(found.blocks(next(spec.tensors(MOE))))


class Buffers:
    """Two that take turns, as on the way to a GPU."""

    def __init__(self) -> None:
        self.buffers, self.asked = [np.empty(1 << 16, np.uint8) for _ in range(2)], 0

    def empty(self, shape, dtype):
        self.asked += 1
        size = int(np.prod(shape)) * dtype.itemsize
        return self.buffers[self.asked % 2][:size].view(dtype).reshape(shape)


class TestStoredBlocks:
    """Blocks as they are stored, in room that is given."""

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_they_are_read_to_where_they_shall_be(self, dtype, tmp_path, monkeypatch):
        path = model_file(tmp_path, dtype=dtype)
        wanted = read_tensors(ModelFile(path))
        monkeypatch.setattr(model, "BLOCK", 7 * 16)
        with h5.reading(path, "model") as file:
            for tensor in spec.tensors(MOE):
                room, rows = Buffers(), []
                for number, block in enumerate(stored_blocks(file, path, tensor, room.empty), 1):
                    assert room.asked == number and np.shares_memory(block, room.buffers[number % 2])
                    assert block.dtype == (np.uint16 if dtype == "bfloat16" else np.float32)
                    rows.append(block.copy())
                assert len(rows) == -(-tensor.shape[0] // model.rows_per_block(tensor.shape))
                found = np.concatenate(rows)
                found = array.widen(found) if dtype == "bfloat16" else found
                np.testing.assert_array_equal(found, wanted[tensor.name], err_msg=tensor.name)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 300 * 16 - 1])
    def test_what_is_no_number_is_found_in_its_tensor(self, place, value, dtype, tmp_path, monkeypatch):
        monkeypatch.setattr(model, "CACHED", 64)
        head, path = np.ones((300, 16), np.float32), tmp_path / "m.h5"
        head.flat[place] = value
        model.write(path, Given(MOE, head=head), dtype)
        found = ModelFile(path)
        for tensor in spec.tensors(MOE):
            if tensor.name != "head":
                list(found.blocks(tensor))
                continue
            with pytest.raises(InputError) as failure:
                list(found.blocks(tensor))
            assert str(failure.value) == f"{path}: head has values that are NaN or infinite"

    @pytest.mark.parametrize("bits", [0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FFF, 0xFFFF, 0x8000, 0])
    def test_all_numbers_pass_and_nothing_else(self, bits, tmp_path):
        path = model_file(tmp_path, dtype="bfloat16")
        damage(path, lambda file: file["head"].__setitem__((299, 15), bits))
        found = ModelFile(path)
        tensor = next(t for t in spec.tensors(MOE) if t.name == "head")
        if np.isfinite(array.widen(np.array([bits], np.uint16))).all():
            assert array.narrow(next(found.blocks(tensor)))[299, 15] == bits
        else:
            with pytest.raises(InputError, match="head has values"):
                list(found.blocks(tensor))

    def test_a_file_that_was_cut_since_it_was_opened(self, tmp_path):
        found = ModelFile(model_file(tmp_path))
        with found.path.open("r+b") as file:
            file.truncate(found.path.stat().st_size // 2)
        with pytest.raises(InputError, match="is truncated: copy or make it again"):
            list(found.blocks(next(spec.tensors(MOE))))


@given(st.lists(st.floats(width=32, allow_nan=False)), st.integers(0, 2**16 - 1))
@settings(deadline=None)
def test_narrowing_rounds_to_the_nearest_bfloat16_and_widening_is_exact(values, bits):
    import ml_dtypes

    wanted = np.array(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(array.widen(array.narrow(np.array(values, np.float32))), wanted)
    one = np.array([bits], np.uint16)
    np.testing.assert_array_equal(array.widen(one).view(np.uint32) >> 16, one)
