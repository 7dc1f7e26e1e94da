"""Model files that are filled in pieces: whatever ends the processes, others go on, and the file is the same."""

import errno
import json
import os
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import DENSE, MOE, Given, model_file, read_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import array, spec
from hpcmoe.convert.making import shares
from hpcmoe.convert.upcycle import Copies
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, model, staged
from hpcmoe.files.model import ModelFile, apart, as_stored

ASKED = {"dtype": "bfloat16", "source": [["model.safetensors", 12, 34]]}
COPIES = Copies(Given(DENSE), 3, 2, 0)


def begin(output: Path, source=None, asked=ASKED, dtype="bfloat16", overwrite=False):
    source = source or Given(MOE)
    return model.begin(output, source, dtype, getattr(source, "same", apart), asked, overwrite)


def fill(made, names, source=None, rank=0, dtype="bfloat16"):
    """What a process does: writes these tensors, and notes them."""
    source = source or Given(MOE)
    with staged.Writer(made, rank) as writer:
        for tensor in spec.tensors(source.spec):
            if tensor.name in names:
                writer.fill(tensor.name, as_stored(source, tensor, dtype))
        writer.commit()
    return made


def plain(path: Path) -> bytes:
    """A file, but for what is new in each."""
    with h5py.File(path) as file:
        new = [file.attrs[name].encode() for name in ("uuid", "created")]
    content = path.read_bytes()
    for word in new:
        assert content.count(word) == 1
        content = content.replace(word, bytes(len(word)))
    return content


def journals(output: Path) -> list[Path]:
    return sorted(staged.folder(output).glob("done-*"))


class TestGoingOn:
    """What one process leaves the next one takes up."""

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    @pytest.mark.parametrize("source", [Given(MOE), COPIES], ids=["experts", "copies"])
    def test_the_file_is_that_of_one_go(self, source, dtype, tmp_path):
        model.write(tmp_path / "one.h5", source, dtype, same=getattr(source, "same", apart))
        output = tmp_path / "m.h5"
        for rank in (0, 1, 0):  # of three runs
            made = begin(output, source, dtype=dtype)
            left = sorted(made.places.keys() - made.done)
            fill(made, left[:len(left) // 2 + 1] if rank else left[:5], source, rank, dtype)
        made = begin(output, source, dtype=dtype)
        staged.finish(fill(made, made.places.keys() - made.done, source, 7, dtype))
        assert plain(output) == plain(tmp_path / "one.h5")
        assert {path.name for path in tmp_path.iterdir()} == {"one.h5", "m.h5"}

    def test_only_what_is_noted_counts_as_filled(self, tmp_path):
        made = begin(tmp_path / "m.h5")
        with staged.Writer(made) as writer:
            writer.fill("norm", [np.zeros(16, np.uint16)])
            assert begin(tmp_path / "m.h5").done == frozenset()
            writer.commit()
            assert begin(tmp_path / "m.h5").done == {"norm"} and writer.committed == 32
            writer.fill("head", [np.zeros((300, 16), np.uint16)])
        assert begin(tmp_path / "m.h5").done == {"norm"}

    @pytest.mark.parametrize("limit", ["BATCH", "EVERY"])
    def test_notes_are_made_now_and_then(self, limit, tmp_path, monkeypatch):
        monkeypatch.setattr(staged, limit, 1 if limit == "BATCH" else 0.0)
        made = begin(tmp_path / "m.h5")
        with staged.Writer(made) as writer:
            writer.fill("norm", [np.zeros(16, np.uint16)])
            assert begin(tmp_path / "m.h5").done == {"norm"}

    def test_a_note_never_precedes_its_bytes(self, tmp_path, monkeypatch):
        """In the order in which the system is asked: bytes, their way to disk, the note."""
        seen, real = [], {name: getattr(os, name) for name in ("pwrite", "write", "fdatasync")}
        for name in real:
            monkeypatch.setattr(os, name, lambda *given, name=name: (seen.append(name), real[name](*given))[1])
        made = begin(tmp_path / "m.h5")
        with staged.Writer(made) as writer:
            seen.clear()
            writer.fill("norm", [np.zeros(8, np.uint16)] * 2)
            writer.commit()
        assert seen == ["pwrite", "pwrite", "fdatasync", "write", "fdatasync"]

    @pytest.mark.parametrize("damage", [
        lambda text: text[:-1], lambda text: text[:-4], lambda text: text[:-12], lambda text: text + b"layers/00",
        lambda text: text.replace(b"norm", b"nurm"), lambda text: text.replace(b"head ", b"heae "),
        lambda text: text[:20] + bytes(len(text) - 20), lambda text: bytes(1000), lambda text: b"\xff\xfe\n\n\n" + text,
        lambda text: text.upper(), lambda text: text[::-1]])
    def test_a_damaged_journal_costs_work_and_nothing_else(self, damage, tmp_path):
        model.write(tmp_path / "one.h5", Given(MOE), "bfloat16")
        output = tmp_path / "m.h5"
        whole = fill(begin(output), {"norm", "head", "embedding"})
        path, = journals(output)
        path.write_bytes(damage(path.read_bytes()))
        made = begin(output)
        assert made.done <= begin(output).done <= {"norm", "head", "embedding"} and made.uuid == whole.uuid
        fill(made, made.places.keys() - made.done)  # the same journal goes on
        assert begin(output).done == made.places.keys()
        staged.finish(made)
        assert plain(output) == plain(tmp_path / "one.h5")

    def test_a_journal_of_another_file_says_nothing(self, tmp_path):
        fill(begin(tmp_path / "a.h5"), {"norm", "head"})
        begin(tmp_path / "b.h5")
        (staged.folder(tmp_path / "b.h5") / "done-0").write_bytes(journals(tmp_path / "a.h5")[0].read_bytes())
        assert begin(tmp_path / "a.h5").done == {"norm", "head"} and not begin(tmp_path / "b.h5").done


class TestCrashes:
    """Wherever a process dies, and the next one does what it was told as well."""

    def test_a_file_that_is_not_complete_is_none(self, tmp_path):
        made = begin(tmp_path / "m.h5")
        staged.contents(tmp_path / "m.h5").rename(tmp_path / "m.h5")
        with pytest.raises(InputError, match="is not an HDF5 file"):
            ModelFile(tmp_path / "m.h5")
        with pytest.raises(OSError, match="signature not found"):
            h5py.File(tmp_path / "m.h5")
        assert made.places

    def test_an_end_at_any_call_of_the_system(self, tmp_path, monkeypatch):
        """Some of them are done, the next one ends the process, and all that it would tidy; another one goes on."""
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, lambda handle: None)  # they take long, and are for another kind of end
        total = made_until(10**6, tmp_path / "whole.h5", monkeypatch)
        assert total > 100
        for step in sorted({*range(0, total, 9), *range(total - 15, total)}):
            output = tmp_path / str(step) / "m.h5"
            made_until(step, output, monkeypatch)
            if output.exists():
                assert_model(output)
            made = begin(output)
            if made:
                staged.finish(fill(made, made.places.keys() - made.done))
            assert_model(output)
            assert [path.name for path in output.parent.iterdir()] == ["m.h5"], step

    def test_a_file_that_has_its_name_is_not_made_again(self, tmp_path, monkeypatch):
        output = tmp_path / "m.h5"
        made = begin(output)
        fill(made, made.places.keys())
        with monkeypatch.context() as patch:
            patch.setattr(staged, "clear", lambda output: None)  # killed before
            staged.finish(made)
        assert staged.folder(output).exists() and begin(output) is None
        staged.finish(fill(begin(output), made.places.keys()))
        assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]

    @pytest.mark.parametrize("what", ["file", "options"])
    def test_another_file_or_other_options_are_no_reason_not_to(self, what, tmp_path, monkeypatch):
        output = tmp_path / "m.h5"
        made = begin(output)
        fill(made, made.places.keys())
        with monkeypatch.context() as patch:
            patch.setattr(staged, "clear", lambda output: None)
            staged.finish(made)
        if what == "file":
            model.write(tmp_path / "other.h5", Given(MOE), "float32")
            (tmp_path / "other.h5").replace(output)
        again = begin(output, asked=ASKED if what == "file" else {})
        assert again and not again.done and again.uuid != made.uuid

    def test_a_file_that_exists_stays_until_the_new_one_is_complete(self, tmp_path):
        output = model_file(tmp_path)
        before = output.read_bytes()
        made = begin(output)
        fill(made, made.places.keys())
        assert output.read_bytes() == before
        staged.finish(made)
        assert_model(output)


class Killed(BaseException):
    """Stands for the end of the process."""


CALLS = ("open", "fsync", "fdatasync", "pwrite", "write", "mkdir", "replace", "unlink", "rmdir", "rename", "ftruncate")


def made_until(step: int, output: Path, monkeypatch) -> int:
    """Makes a model file until the process has asked the system `step` times; how often it asked."""
    calls = 0

    def until(real):
        def call(*given, **named):
            nonlocal calls
            if calls >= step:
                raise Killed
            calls += 1
            return real(*given, **named)
        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, until(getattr(os, name)))
        with suppress(Killed):
            made = begin(output)
            for name in ("norm", "layers/001/gate", "head"):
                fill(made, {name})
            fill(made, made.places.keys() - {"norm", "layers/001/gate", "head"})
            staged.finish(made)
    return calls


def assert_model(path: Path) -> None:
    """All tensors are there, and nothing is wrong."""
    found = read_tensors(ModelFile(path))
    for name, values in read_tensors(Given(MOE)).items():
        np.testing.assert_array_equal(array.narrow(found[name]), array.narrow(values), err_msg=name)


class TestRefused:
    """What lies there and is something else."""

    @pytest.mark.parametrize("asked, words", [
        (ASKED | {"dtype": "float32"}, "(dtype)"), (ASKED | {"source": [["model.safetensors", 12, 35]]}, "(source)"),
        ({"dtype": "bfloat16"}, "(source)"), (ASKED | {"seed": 1, "dtype": "f"}, "(dtype, seed)")])
    def test_other_options_are_named(self, asked, words, tmp_path):
        fill(begin(tmp_path / "m.h5"), {"norm"})
        with pytest.raises(JobError) as failure:
            begin(tmp_path / "m.h5", asked=asked)
        line = str(failure.value)
        assert "\n" not in line and words in line and "m.h5.unfinished" in line and "--overwrite begins anew" in line
        assert begin(tmp_path / "m.h5").done == {"norm"}
        again = begin(tmp_path / "m.h5", asked=asked, overwrite=True)
        assert again and not again.done and begin(tmp_path / "m.h5", asked=asked).uuid == again.uuid

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"asked": 3, "bytes": 1, "uuid": "", "places": {}}',
                                      '{"asked": {}, "bytes": 1, "uuid": "", "places": {"a": 3}}'])
    def test_a_plan_that_is_none(self, text, tmp_path):
        begin(tmp_path / "m.h5")
        (staged.folder(tmp_path / "m.h5") / "plan").write_text(text)
        with pytest.raises(JobError, match="plan is damaged: --overwrite begins anew"):
            begin(tmp_path / "m.h5")
        assert begin(tmp_path / "m.h5", overwrite=True)

    def test_contents_that_were_cut(self, tmp_path):
        begin(tmp_path / "m.h5")
        with staged.contents(tmp_path / "m.h5").open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(JobError, match="has another size than it had: --overwrite begins anew"):
            begin(tmp_path / "m.h5")

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        staged.folder(tmp_path / "m.h5").write_text("dear to me")
        with pytest.raises(JobError, match=r"m\.h5 cannot be written: Not a directory"):
            begin(tmp_path / "m.h5")
        assert staged.folder(tmp_path / "m.h5").read_text() == "dear to me"

    def test_files_of_others_are_left_alone(self, tmp_path):
        staged.folder(tmp_path / "m.h5").mkdir()
        (staged.folder(tmp_path / "m.h5") / "notes.txt").write_text("dear to me")
        made = begin(tmp_path / "m.h5")
        made = begin(tmp_path / "m.h5", asked={}, overwrite=True)
        staged.finish(fill(made, made.places))
        assert_model(tmp_path / "m.h5")
        assert [path.name for path in staged.folder(tmp_path / "m.h5").iterdir()] == ["notes.txt"]

    def test_what_a_plan_holds(self, tmp_path):
        made = begin(tmp_path / "m.h5")
        table = json.loads((staged.folder(tmp_path / "m.h5") / "plan").read_text())
        assert table["asked"] == ASKED and table["uuid"] == made.uuid
        assert table["bytes"] == staged.contents(tmp_path / "m.h5").stat().st_size
        assert {name: tuple(at) for name, at in table["places"].items()} == made.places


class TestDisk:
    """Where it has no room, or fails."""

    def test_too_little_room_is_said_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(staged.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(JobError, match=r"m\.h5 needs .* more, and only 1\.0 kB are free there"):
            begin(tmp_path / "m.h5")
        assert not list(tmp_path.iterdir())

    def test_and_when_a_run_goes_on(self, tmp_path, monkeypatch):
        wide = Given(replace(MOE, vocabulary=30000))
        fill(begin(tmp_path / "m.h5", wide), {"norm"}, wide)
        monkeypatch.setattr(staged.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
        with pytest.raises(JobError, match="only 10 B are free there"):
            begin(tmp_path / "m.h5", wide)

    @pytest.mark.parametrize("call", ["pwrite", "write", "fdatasync"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_a_disk_that_fills_up_costs_what_was_not_noted(self, call, number, tmp_path, monkeypatch):
        output, real = tmp_path / "m.h5", getattr(os, call)
        made = fill(begin(output), {"norm"})
        left = {"head", "embedding"}

        def full(*given):
            raise OSError(number, os.strerror(number))

        with staged.Writer(made) as writer:
            monkeypatch.setattr(os, call, full)
            with pytest.raises(JobError) as failure:
                for name in left:
                    writer.fill(name, [np.zeros((300, 16), np.uint16)])
                writer.commit()
            assert str(failure.value) == f"{output} cannot be written: {os.strerror(number)}"
            monkeypatch.setattr(os, call, real)
            writer.commit()  # what failed once on its way to disk is not noted by a second try that does not
        assert begin(output).done == {"norm"}

    def test_writes_that_take_a_part_go_on_with_the_rest(self, tmp_path, monkeypatch):
        real = os.pwrite
        model.write(tmp_path / "one.h5", Given(MOE), "bfloat16")
        made = begin(tmp_path / "m.h5")
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: real(handle, data[:37], at))
        staged.finish(fill(made, made.places))
        assert plain(tmp_path / "m.h5") == plain(tmp_path / "one.h5")

    @pytest.mark.parametrize("count", [15, 17])
    def test_neighbours_are_never_written_over(self, count, tmp_path):
        made = begin(tmp_path / "m.h5")
        before = staged.contents(tmp_path / "m.h5").read_bytes()
        with staged.Writer(made) as writer, pytest.raises(AssertionError, match="norm"):
            writer.fill("norm", [np.ones(count, np.uint16)])
        at, size = made.places["norm"]
        after = staged.contents(tmp_path / "m.h5").read_bytes()
        assert after[:at] == before[:at] and after[at + size:] == before[at + size:]


@given(st.lists(st.integers(1, 10**12), max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_shares_are_even_within_a_tensor_and_keep_neighbours_together(sizes, ranks):
    owners = shares(sizes, ranks).tolist()
    assert len(owners) == len(sizes) and owners == sorted(owners) and all(0 <= owner < ranks for owner in owners)
    for rank in range(ranks):
        bytes_of_rank = sum(size for size, owner in zip(sizes, owners) if owner == rank)
        assert abs(bytes_of_rank - sum(sizes) / ranks) <= max(sizes, default=0)


def test_places_do_not_touch_and_lie_where_hdf5_reads(tmp_path):
    made = begin(tmp_path / "m.h5", COPIES)
    ends = sorted(made.places.values())
    assert all(at + count <= following for (at, count), (following, _) in pairwise(ends))
    staged.finish(fill(made, made.places, COPIES))
    with h5.reading(tmp_path / "m.h5", "model") as file:
        for name, at in made.places.items():
            assert (file[name].id.get_offset(), file[name].id.get_storage_size()) == at
