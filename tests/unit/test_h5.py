"""What all our HDF5 files have in common: written whole or not at all, marked, and refused by name where not right."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest
from helpers import MOE, Given, all_files, answer, damage, put_part, put_prompts

from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, model, parts, place, prompts, results
from hpcmoe.files.disk import Disk
from hpcmoe.files.model import ModelFile


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


class TestDisk:
    """Whatever write fails, HDF5 ends in peace, the reason is known, and nothing is left."""

    def test_any_write_may_be_the_first_that_fails(self, tmp_path, monkeypatch):
        whole, count = os.pwrite, 0

        def write(handle, data, at):
            nonlocal count
            count += 1
            if count >= first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(handle, data, at)

        monkeypatch.setattr(os, "pwrite", write)
        for first in (*range(1, 20), 30, 40, 10**9):
            count = 0
            try:
                put_part(tmp_path / "o.h5", 0, 0, 0, [answer(n, n) for n in range(50)])
            except JobError as error:
                assert str(error).endswith("cannot be written: No space left on device")
                assert count >= first and not list((tmp_path / "o.h5.parts").iterdir())
        assert count > 40

    def test_hdf5_reads_again_what_was_not_written(self, tmp_path, monkeypatch):
        """It crashes where something else is there: whatever its buffer held."""
        disk, whole = Disk(tmp_path / "x"), os.pwrite
        assert disk.write(memoryview(b"abcdef")) == 6

        def half(handle, data, at):
            if len(data) < 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(handle, data[:3], at)
        monkeypatch.setattr(os, "pwrite", half)
        for at, data in (4, b"EFGHI"), (20, b"xyz"), (8, b"I"):  # the first half comes through
            disk.seek(at)
            assert disk.write(memoryview(data)) == len(data) and disk.tell() == at + len(data)
        assert disk.failure
        read = bytearray(b"?" * 25)
        disk.seek(0)
        assert disk.readinto(memoryview(read)) == 25 and read == b"abcdEFGHI" + bytes(11) + b"xyz" + bytes(2)
        disk.close()
        assert (tmp_path / "x").read_bytes() == b"abcdEFG"

    def test_a_disk_that_takes_a_little_at_a_time(self, tmp_path, monkeypatch):
        whole = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: whole(handle, data[:100], at))
        path = put_prompts(tmp_path / "x.h5", range(1000))
        assert prompts.read(path)[0].tolist() == list(range(1000))

    def test_what_fails_only_when_all_is_on_its_way_fails_too(self, tmp_path, monkeypatch):
        """As where a quota of NFS is found when a file is closed."""

        def full(handle):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JobError, match="quota"):
            put_prompts(tmp_path / "x.h5", [1])
        assert not list(tmp_path.iterdir())

    def test_a_model_is_not_converted_to_its_end_for_nothing(self, tmp_path, monkeypatch):
        def full(handle, data, at):
            raise OSError(errno.ENOSPC, "full")

        done: list[str] = []
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(JobError, match="full"):
            model.write(tmp_path / "m.h5", Given(MOE), "float32", done=lambda t: done.append(t.name))
        assert len(done) < 5

    def test_a_defect_in_the_block_is_not_lost_with_the_disk(self, tmp_path, monkeypatch):
        def full(handle, data, at):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(JobError, match="full") as told, h5.writing(tmp_path / "x.h5", "prompts") as file:
            file.create_dataset("a", data=np.zeros(100_000))
            file.flush()
            raise ZeroDivisionError
        assert isinstance(told.value.__cause__, ZeroDivisionError)

    def test_a_defect_in_the_block_stays_what_it_is(self, tmp_path):
        with pytest.raises(OSError, match="elsewhere"), h5.writing(tmp_path / "x.h5", "prompts"):
            raise OSError("elsewhere")
        assert not list(tmp_path.iterdir())

    def test_leftovers_of_dead_processes_of_this_host_are_swept(self, tmp_path):
        host, dead = socket.gethostname(), subprocess.Popen(["true"])
        dead.wait()
        kept = [f".x.h5.{host}-{os.getpid()}.tmp", f".x.h5.other-{dead.pid}.tmp", f".y.h5.{host}-{dead.pid}.tmp"]
        for name in (*kept, f".x.h5.{host}-{dead.pid}.tmp"):
            (tmp_path / name).write_text("")
        place.sweep(tmp_path / "x.h5")
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


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
