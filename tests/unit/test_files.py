"""Our HDF5 files: written whole or not at all, readable by anyone, and refused by name where they are not right."""

import fcntl
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
from helpers import (
    DENSE,
    MOE,
    Given,
    answer,
    assert_same_tensors,
    byte_tokenizer,
    model_file,
    origin,
    read_tensors,
    step_time,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import array, spec, tables
from hpcmoe.convert.upcycle import Copies
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, model, parts, prompts, results
from hpcmoe.files.model import ModelFile
from hpcmoe.files.parts import Part
from hpcmoe.types import STAGES

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


def put_prompts(path, *lists, ids=None):
    """A prompts file."""
    prompts.write(path, ids or [f"p{n}" for n in range(len(lists))], [np.array(t, np.int32) for t in lists])
    return path


def three(ids=("a", "b", "c")):
    """Three prompts of one token."""
    return prompts.Prompts(np.arange(3, dtype=np.int32), np.arange(4), tuple(ids), "u")


def pack(output, count=3):
    """Packs the parts of `output`; texts are the tokens, joined."""
    given_ids = tuple(f"id {n}" for n in range(count))
    found = prompts.Prompts(np.zeros(count, np.int32), np.arange(count + 1), given_ids)
    results.pack(output, found, origin(), lambda tokens: "-".join(map(str, tokens)))
    return output


def put_part(output, attempt, rank, sequence, answers, steps=(), load=None, identity="job A"):
    """A part of `output`."""
    found = Part(tuple(answers), np.ones((2, 4), np.int64) if load is None else load, tuple(steps))
    return parts.write(output, attempt, rank, sequence, found, origin(identity))


def damage(path, change):
    """Opens the file for writing, as nobody should, and lets `change` do something to it."""
    with h5py.File(path, "r+") as file:
        change(file)


def all_files(folder):
    """One file of each layout."""
    put_prompts(folder / "prompts.h5", [1, 2], [3])
    output = folder / "results.h5"
    part = put_part(output, 0, 0, 0, [answer(0, 5, 6), answer(1, 7)], [step_time(0)])
    part.rename(folder / "part.h5")
    put_part(output, 0, 0, 0, [answer(0, 5, 6), answer(1, 7)], [step_time(0)])
    pack(output, 2)
    model_file(folder, text=True)
    return [folder / f"{name}.h5" for name in ("model", "prompts", "part", "results")]


class TestWriting:
    """A file appears whole, or not at all."""

    def test_nothing_is_there_until_the_block_ends(self, tmp_path):
        path = tmp_path / "x.h5"
        with h5.writing(path, "prompts"):
            assert not path.exists()
        assert path.exists() and [p.name for p in tmp_path.iterdir()] == ["x.h5"]

    def test_an_exception_in_the_block_leaves_nothing(self, tmp_path):
        with pytest.raises(ZeroDivisionError), h5.writing(tmp_path / "x.h5", "prompts"):
            _ = 1 / 0
        assert not list(tmp_path.iterdir())

    def test_an_exception_in_the_block_leaves_the_old_file_as_it_was(self, tmp_path):
        path = put_prompts(tmp_path / "x.h5", [1])
        before = path.read_bytes()
        with pytest.raises(KeyboardInterrupt), h5.writing(path, "prompts") as file:
            file["y"] = 1
            raise KeyboardInterrupt
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

    def test_a_source_that_breaks_halfway_leaves_no_model(self, tmp_path):
        class Breaks(Given):
            def blocks(self, tensor):
                if tensor.name == "head":
                    raise InputError("no more")
                return super().blocks(tensor)

        with pytest.raises(InputError):
            model.write(tmp_path / "m.h5", Breaks(MOE), "float32")
        assert not list(tmp_path.iterdir())

    def test_a_file_is_replaced_by_a_new_one_and_readers_of_the_old_go_on(self, tmp_path):
        path = put_prompts(tmp_path / "x.h5", [1, 2, 3])
        with h5.reading(path, "prompts") as old:
            put_prompts(path, [9])
            assert old["tokens/data"][:].tolist() == [1, 2, 3]
        assert prompts.read(path)[0].tolist() == [9]

    def test_folders_on_the_way_are_made(self, tmp_path):
        assert len(prompts.read(put_prompts(tmp_path / "a" / "b" / "x.h5", [1]))) == 1

    def test_a_folder_under_that_name_is_one_clear_error(self, tmp_path):
        (tmp_path / "x.h5").mkdir()
        with pytest.raises(JobError, match=r"x\.h5"):
            put_prompts(tmp_path / "x.h5", [1])
        assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]

    def test_a_file_in_place_of_its_folder_is_one_clear_error(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(JobError, match="cannot be written"):
            put_prompts(tmp_path / "a" / "x.h5", [1])

    def test_a_name_too_long_is_one_clear_error(self, tmp_path):
        with pytest.raises(JobError, match="cannot be written"):
            put_prompts(tmp_path / f"{'x' * 300}.h5", [1])

    def test_a_full_disk_is_one_clear_error_and_leaves_nothing(self, tmp_path):
        """A limit on the size of files stands for a quota."""
        code = (
            "import resource, signal, sys, numpy as np; from pathlib import Path; from hpcmoe.files import prompts\n"
            "from hpcmoe.errors import JobError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "try: prompts.write(Path(sys.argv[1]), ['a'], [np.zeros(100_000, np.int32)])\n"
            "except JobError as error: print('one line:', error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.h5"], capture_output=True, text=True)
        assert not list(tmp_path.iterdir())
        assert done.stdout.startswith("one line:"), done.stderr


class TestMarks:
    """What every file says of itself, to people with h5py or h5dump."""

    def test_every_file_has_the_four_marks(self, tmp_path):
        for path in all_files(tmp_path):
            with h5py.File(path) as file:
                assert file.attrs["format"] == f"hpcmoe-{path.stem}"
                assert file.attrs["format_version"] == h5.VERSION
                assert file.attrs["creator"].startswith("hpcmoe ")
                assert file.attrs["created"].endswith("+00:00")

    def test_every_dataset_says_what_it_is_and_in_what_unit(self, tmp_path):
        for path in all_files(tmp_path):
            names: list[str] = []
            with h5py.File(path) as file:
                file.visit(names.append)
                names = [name for name in names if isinstance(file[name], h5py.Dataset)]
                for name in names:
                    assert file[name].attrs["long_name"], name
                    assert file[name].attrs["units"], name
            assert names

    def test_units_are_units(self, tmp_path):
        results_file = all_files(tmp_path)[-1]
        with h5py.File(results_file) as file:
            assert file["timings/wall"].attrs["units"] == "s"
            assert file["logprobs/data"].attrs["units"] == "nat"
            assert file["tokens/data"].attrs["units"] == "1"

    def test_two_files_of_the_same_content_have_names_of_their_own(self, tmp_path):
        a, b = (prompts.read(put_prompts(tmp_path / f"{n}.h5", [1])) for n in "ab")
        assert a.uuid and a.uuid != b.uuid


class TestReading:
    """Whatever is not one of our files is refused in words."""

    @pytest.fixture
    def path(self, tmp_path):
        return put_prompts(tmp_path / "p.h5", [1, 2], [3])

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match=r"prompts file .*p\.h5 does not exist"):
            prompts.read(tmp_path / "p.h5")

    def test_a_path_through_a_file(self, path):
        with pytest.raises(InputError, match="does not exist"):
            prompts.read(path / "p.h5")

    def test_a_link_to_nowhere(self, tmp_path):
        (tmp_path / "p.h5").symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="does not exist"):
            prompts.read(tmp_path / "p.h5")

    def test_a_folder(self, tmp_path):
        with pytest.raises(InputError, match="folder"):
            prompts.read(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"x", b"model = 'm.h5'\n" * 300, bytes(5000)])
    def test_a_file_that_is_not_hdf5(self, content, tmp_path):
        path = tmp_path / "p.h5"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not an HDF5 file") as caught:
            prompts.read(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("layout", ["model", "prompts", "part", "results"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0])
    def test_a_truncated_file(self, layout, share, tmp_path):
        """Of any length, down to the last byte missing."""
        path = dict(zip(("model", "prompts", "part", "results"), all_files(tmp_path)))[layout]
        content = path.read_bytes()
        path.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])
        read = {"model": ModelFile, "prompts": prompts.read, "part": parts.read, "results": results.answers}[layout]
        with pytest.raises(InputError, match=r"truncated|not an HDF5 file|cannot be opened") as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    @pytest.mark.parametrize(
        "layout, read",
        [("model", ModelFile), ("prompts", prompts.read), ("part", parts.read), ("results", results.answers)],
    )
    def test_a_file_of_another_layout(self, layout, read, tmp_path):
        for path in all_files(tmp_path):
            if path.stem != layout:
                with pytest.raises(InputError, match=f"is a {path.stem} file where a {layout} file is expected"):
                    read(path)

    def test_a_foreign_hdf5_file(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["tokens"] = [1]
        with pytest.raises(InputError, match="not a file of hpcmoe"):
            prompts.read(tmp_path / "x.h5")

    @pytest.mark.parametrize("mark", ["netcdf", 5, np.bytes_(b"other"), [1.0, 2.0]])
    def test_a_foreign_file_that_has_a_format(self, mark, path):
        damage(path, lambda file: file.attrs.__setitem__("format", mark))
        with pytest.raises(InputError, match="not a file of hpcmoe"):
            prompts.read(path)

    def test_a_file_of_a_newer_version(self, path):
        damage(path, lambda file: file.attrs.__setitem__("format_version", h5.VERSION + 1))
        with pytest.raises(InputError, match=f"format version {h5.VERSION + 1}.*update hpcmoe"):
            prompts.read(path)

    @pytest.mark.parametrize("version", ["newest", [1, 2]])
    def test_a_version_that_is_none(self, version, path):
        damage(path, lambda file: file.attrs.__setitem__("format_version", version))
        with pytest.raises(InputError, match="version"):
            prompts.read(path)

    def test_without_a_lock(self, path):
        """Some parallel file systems have none; and a lock held elsewhere is no reason to fail."""
        with path.open("rb+") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            assert len(prompts.read(path)) == 2

    @pytest.mark.parametrize("name", ["tokens/data", "tokens/offsets", "id", "tokens"])
    def test_a_prompts_file_without_a_dataset(self, name, path):
        damage(path, lambda file: file.__delitem__(name))
        with pytest.raises(InputError, match=rf"p\.h5 has no dataset {name}"):
            prompts.read(path)

    @pytest.mark.parametrize("name", ["prompt", "tokens/data", "logprobs/offsets", "stop", "load", "timings/wall"])
    def test_a_part_without_a_dataset(self, name, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        damage(path, lambda file: file.__delitem__(name))
        with pytest.raises(InputError, match=f"has no dataset {name}"):
            parts.read(path)

    @pytest.mark.parametrize("name", ["tokens/data", "id"])
    def test_a_group_where_a_dataset_should_be(self, name, path):
        def change(file):
            del file[name]
            file.create_group(name)

        damage(path, change)
        with pytest.raises(InputError, match=name):
            prompts.read(path)

    @pytest.mark.parametrize(
        "offsets", [[1, 2, 3], [0, 2], [0, 2, 4], [0, 3, 2, 3], [], [[0, 2, 3]], 0, [0.0, 2.0, 3.0], [-1, 2, 3]]
    )
    def test_offsets_that_do_not_fit(self, offsets, path):
        def change(file):
            del file["tokens/offsets"]
            file["tokens/offsets"] = offsets

        damage(path, change)
        with pytest.raises(InputError, match=r"tokens/offsets|3 prompts|1 prompts"):
            prompts.read(path)

    @pytest.mark.parametrize("data", [[1.0, 2.0, 3.0], [[1], [2], [3]], 3, ["a", "b", "c"]])
    def test_tokens_that_are_none(self, data, path):
        def change(file):
            del file["tokens/data"]
            file["tokens/data"] = data

        damage(path, change)
        with pytest.raises(InputError, match=r"tokens/data|tokens/offsets"):
            prompts.read(path)

    @pytest.mark.parametrize("token", [2**31, 2**32 + 5, 2**63 - 1, -(2**40)])
    def test_a_token_too_large_does_not_become_another(self, token, path):
        """A file made by the user's own script may have int64 tokens."""

        def change(file):
            del file["tokens/data"]
            file["tokens/data"] = np.array([1, token, 3])

        damage(path, change)
        with pytest.raises(InputError):
            prompts.check(prompts.read(path), MOE, "p.h5")

    def test_ids_that_are_too_few(self, path):
        def change(file):
            del file["id"]
            file["id"] = ["only"]

        damage(path, change)
        with pytest.raises(InputError, match="1 ids for 2 prompts"):
            prompts.read(path)


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
            assert spec.from_table(tables.parse(file.attrs["spec"])) == MOE

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

        def broken(self, args):
            raise OSError("Can't synchronously read data")

        monkeypatch.setattr(h5py.Dataset, "__getitem__", broken)
        with pytest.raises(InputError, match="embedding cannot be read"):
            list(found.blocks(next(spec.tensors(MOE))))


class TestPrompts:
    """prompts.h5"""

    @given(st.lists(st.tuples(IDS, TOKENS), max_size=8))
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_comes_back(self, tmp_path_factory, lists):
        path = tmp_path_factory.mktemp("p") / "p.h5"
        prompts.write(path, [i for i, _ in lists], [np.array(t, np.int32) for _, t in lists])
        found = prompts.read(path)
        assert found.ids == tuple(i for i, _ in lists)
        assert [found[n].tolist() for n in range(len(found))] == [t for _, t in lists]
        assert found.lengths.tolist() == [len(t) for _, t in lists]
        assert found.data.dtype == np.int32 and found.offsets.dtype == np.int64

    def test_ten_lines_of_h5py_read_it(self, tmp_path):
        prompts.write(tmp_path / "p.h5", ["a", "größe"], [np.array([1, 2]), np.array([3])], ["x y", "z"])
        with h5py.File(tmp_path / "p.h5") as file:
            at = file["tokens/offsets"][:]
            assert [file["tokens/data"][a:b].tolist() for a, b in pairwise(at)] == [[1, 2], [3]]
            assert file["id"].asstr()[:].tolist() == ["a", "größe"]
            assert file["text"].asstr()[:].tolist() == ["x y", "z"]
            assert (file["tokens/data"].dtype, file["tokens/offsets"].dtype) == (np.int32, np.int64)


class TestParts:
    """Segments of an unfinished run."""

    @given(
        st.lists(st.tuples(st.integers(0, 99), TOKENS, st.sampled_from(["eos", "length", "context"])), max_size=6),
        st.integers(0, 3),
    )
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_comes_back(self, tmp_path_factory, listed, count):
        answers = [answer(p, *tokens, stop=stop) for p, tokens, stop in listed]
        steps = [step_time(n, wall=0.1 * n) for n in range(count)]
        load = np.arange(8).reshape(2, 4)
        path = put_part(tmp_path_factory.mktemp("p") / "o.h5", 7, 3, 0, answers, steps, load)
        found = parts.read(path)
        assert [(a.prompt, a.tokens.tolist(), a.logprobs.tolist(), a.stop) for a in found.answers] == [
            (a.prompt, a.tokens.tolist(), a.logprobs.tolist(), a.stop) for a in answers
        ]
        assert [(s.step, s.tokens, s.answers, s.wall, s.stages.tolist()) for s in found.steps] == [
            (s.step, s.tokens, s.answers, s.wall, s.stages.tolist()) for s in steps
        ]
        assert found.load.tolist() == load.tolist() and found.attempt == 7

    def test_parts_lie_beside_the_output_in_order_of_attempt_rank_and_number(self, tmp_path):
        output = tmp_path / "out.h5"
        for key in [(1, 0, 0), (0, 11, 0), (0, 2, 10), (0, 2, 9)]:
            put_part(output, *key, [])
        assert [p.name for p in parts.files(output)] == [
            "0000-00002-000009.h5",
            "0000-00002-000010.h5",
            "0000-00011-000000.h5",
            "0001-00000-000000.h5",
        ]
        assert parts.files(output)[0].parent == tmp_path / "out.h5.parts"

    def test_what_a_killed_process_leaves_is_passed_over(self, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(4, 1)])
        path.with_name(".0000-00000-000001.h5.99.tmp").write_bytes(path.read_bytes()[:1000])
        assert parts.files(tmp_path / "o.h5") == [path]

    def test_finished_prompts_of_all_ranks_and_attempts_are_found(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(4, 1), answer(0, 2)])
        put_part(output, 0, 1, 0, [])
        put_part(output, 2, 0, 0, [answer(3, 1)])
        attempt, done = parts.finished(output, "job A")
        assert (attempt, done.tolist()) == (3, [0, 3, 4])

    def test_nothing_is_finished_where_nothing_is(self, tmp_path):
        attempt, done = parts.finished(tmp_path / "o.h5", "job A")
        assert attempt == 0 and len(done) == 0 and done.dtype == np.int64

    def test_parts_of_another_job_are_refused_and_left_alone(self, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        with pytest.raises(JobError, match=r"another job.*--overwrite"):
            parts.finished(tmp_path / "o.h5", "job B")
        assert path.exists()

    def test_a_truncated_part_is_named(self, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(InputError, match=path.name):
            parts.finished(tmp_path / "o.h5", "job A")

    @pytest.mark.parametrize("name", ["identity", "attempt"])
    def test_a_part_without_its_attribute_is_named(self, name, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        damage(path, lambda file: file.attrs.__delitem__(name))
        with pytest.raises(InputError, match=name):
            parts.finished(tmp_path / "o.h5", "job A")

    @pytest.mark.parametrize("name, values", [("logprobs", [[0.5]]), ("stop", ["eos"]), ("prompt", [1])])
    def test_lists_of_different_lengths_are_refused(self, name, values, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1, 2), answer(1, 3)])

        def change(file):
            del file[name]
            if name == "logprobs":
                h5.put_ragged(file, name, [np.array(v) for v in values], "float32", "x")
            else:
                file[name] = values

        damage(path, change)
        with pytest.raises(InputError, match=path.name):
            parts.read(path)


class TestResults:
    """results.h5, packed from parts."""

    def test_answers_of_ranks_and_attempts_are_in_the_order_of_the_prompts(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 1, 0, [answer(2, 20, 21, stop="eos"), answer(0, 1)])
        put_part(output, 1, 0, 0, [answer(3, 30, 31, 32)])
        put_part(output, 1, 0, 1, [answer(1, 10, stop="context")])
        found = results.answers(pack(output, 4))
        assert [a.prompt for a in found] == [0, 1, 2, 3]
        assert [a.tokens.tolist() for a in found] == [[1], [10], [20, 21], [30, 31, 32]]
        assert [a.stop for a in found] == ["length", "context", "eos", "length"]
        np.testing.assert_allclose(found[2].logprobs, [-2.0, -2.1], rtol=1e-6)

    def test_packing_leaves_one_file_and_no_parts(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        pack(output)
        assert [p.name for p in tmp_path.iterdir()] == ["o.h5"]

    def test_loads_are_summed(self, tmp_path):
        output = tmp_path / "o.h5"
        for rank in range(3):
            put_part(output, 0, rank, 0, [answer(rank, 1)], load=np.full((2, 4), 10**rank))
        with h5py.File(pack(output)) as file:
            assert file["load"][:].tolist() == [[111] * 4] * 2 and file["load"].dtype == np.int64

    def test_steps_are_put_together_by_attempt_and_number(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(0, 1)], [step_time(0, tokens=5, wall=1.0), step_time(1)])
        put_part(output, 0, 1, 0, [answer(1, 1)], [step_time(0, tokens=7, wall=3.0)])
        put_part(output, 1, 0, 0, [answer(2, 1)], [step_time(0, answers=9)])
        with h5py.File(pack(output)) as file:
            times = {name: file[f"timings/{name}"][:] for name in file["timings"]}
        assert times["attempt"].tolist() == [0, 0, 1] and times["step"].tolist() == [0, 1, 0]
        assert times["tokens"].tolist() == [12, 3, 3] and times["answers"].tolist() == [4, 2, 9]
        assert times["wall"].tolist() == [3.0, 0.5, 0.5]
        np.testing.assert_allclose(times["max"][0], 3.0 * np.arange(1, len(STAGES) + 1) / 100)
        np.testing.assert_allclose(times["mean"][0], 2.0 * np.arange(1, len(STAGES) + 1) / 100)
        assert [s.decode() for s in times["stage"]] == list(STAGES)

    def test_a_run_without_steps_has_empty_tables(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        with h5.reading(pack(output), "results") as file:
            table = results.steps(file, output)
        assert table.mean.shape == (0, len(STAGES)) and len(table.wall) == 0

    def test_ids_and_texts_of_any_alphabet_come_back(self, tmp_path):
        output, ids = tmp_path / "o.h5", ("größe", "数 🦜", "")
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        results.pack(output, three(ids), origin(), lambda tokens: f"«{tokens[0]}» 🦜\n")
        with h5py.File(output) as file:
            assert tuple(file["id"].asstr()[:]) == ids
            assert file["text"].asstr()[:].tolist() == ["«0» 🦜\n", "«1» 🦜\n", "«2» 🦜\n"]

    @pytest.mark.parametrize("text", ["a\0b", "\0"])
    def test_a_text_that_hdf5_cannot_hold_does_not_lose_the_run(self, text, tmp_path):
        """A model may say anything: a zero byte is one token of every byte-level vocabulary."""
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        results.pack(output, three(), origin(), lambda tokens: text)
        assert [a.tokens.tolist() for a in results.answers(output)] == [[0], [1], [2]]

    def test_an_answer_twice_or_missing_is_never_packed(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(0, 1), answer(0, 2), answer(2, 1)])
        with pytest.raises(AssertionError, match="exactly one answer"):
            pack(output)
        assert not output.exists() and parts.files(output)

    def test_provenance_is_in_attributes(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        with h5py.File(pack(output)) as file:
            assert file.attrs["job"] == 'model = "m"\n' and file.attrs["versions"] == "hpcmoe test"
            assert (file.attrs["ranks"], file.attrs["experts_per_rank"]) == (2, 2)
            assert file["host"].asstr()[:].tolist() == ["host", "host"]

    def test_the_same_job_is_finished_and_another_is_refused(self, tmp_path):
        output = tmp_path / "o.h5"
        assert not results.is_finished(output, "job A")
        put_part(output, 0, 0, 0, [answer(n, n) for n in range(3)])
        pack(output)
        assert results.is_finished(output, "job A")
        with pytest.raises(JobError, match=r"another job.*--overwrite"):
            results.is_finished(output, "job B")

    def test_ten_lines_of_h5py_read_it(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(1, 5, 6), answer(0), answer(2, 9)])
        with h5py.File(pack(output)) as file:
            at, tokens = file["tokens/offsets"][:], file["tokens/data"][:]
            assert [tokens[a:b].tolist() for a, b in pairwise(at)] == [[], [5, 6], [9]]
            assert file["logprobs/offsets"][:].tolist() == at.tolist()
            assert file["prompt"][:].tolist() == [0, 1, 2]
            assert (tokens.dtype, file["logprobs/data"].dtype, file["prompt"].dtype) == (np.int32, np.float32, np.int64)


class TestRagged:
    """Lists of any lengths."""

    @given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=9))
    @settings(deadline=None, max_examples=50)
    def test_lists_come_back(self, lists):
        with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
            h5.put_ragged(file, "x", [np.array(v, np.int32) for v in lists], "int32", "numbers [m]")
            data, at = h5.ragged(file, "x", None)
            assert [data[a:b].tolist() for a, b in pairwise(at)] == lists
            assert data.dtype == np.int32 and at.dtype == np.int64

    @given(st.lists(IDS, max_size=6))
    @settings(deadline=None, max_examples=50)
    def test_strings_come_back(self, words):
        with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
            h5.put_strings(file, "x", words, "words")
            assert h5.strings(file, "x", None) == words


@given(st.lists(st.floats(width=32, allow_nan=False)), st.integers(0, 2**16 - 1))
@settings(deadline=None)
def test_narrowing_rounds_to_the_nearest_bfloat16_and_widening_is_exact(values, bits):
    import ml_dtypes

    wanted = np.array(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(array.widen(array.narrow(np.array(values, np.float32))), wanted)
    one = np.array([bits], np.uint16)
    np.testing.assert_array_equal(array.widen(one).view(np.uint32) >> 16, one)
