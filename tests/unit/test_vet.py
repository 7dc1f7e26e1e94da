"""Untrusted files are looked through in a child with limits, and lead nowhere else."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import MOE, all_files, assert_one_line, command, damage, model_file, put_prompts, spec_file

from hpcmoe import child
from hpcmoe.child import Child, Unavailable
from hpcmoe.convert.parts import checked
from hpcmoe.errors import InputError, visible
from hpcmoe.files import probe, prompts, vet
from hpcmoe.files.model import ModelFile
from hpcmoe.files.probe import Probe
from hpcmoe.types import Speeds


@pytest.fixture
def path(tmp_path):
    return put_prompts(tmp_path / "p.h5", [1, 2], [3])


def replace(path: Path, name: str, *args, **options) -> None:
    """Another dataset of that name."""

    def change(file):
        del file[name]
        file.create_dataset(name, *args, **options)

    damage(path, change)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        prompts.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def alive(pid: int) -> bool:
    """Whether a process runs; dead ones may wait for somebody who asks."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return False


class TestElsewhere:
    """What leads out of a file is not followed, wherever it leads."""

    @pytest.mark.parametrize("target", ["other.h5", "/etc/passwd", "../other.h5", "nowhere.h5", "/dev/zero"])
    def test_an_external_link(self, target, path):
        put_prompts(path.with_name("other.h5"), [1, 2], [3])

        def change(file):
            del file["tokens"]
            file["tokens"] = h5py.ExternalLink(target, "/tokens")

        damage(path, change)
        assert "tokens is a link to another file, which is not followed" in refused(path)

    @pytest.mark.parametrize("target", ["p.raw", "/etc/passwd"])
    def test_external_storage(self, target, path):
        replace(path, "tokens/data", (3,), dtype="i4", external=[(target, 0, 12)])
        assert "tokens/data is stored in another file" in refused(path)

    def test_a_virtual_dataset(self, path):
        put_prompts(path.with_name("other.h5"), [1, 2], [3])
        layout = h5py.VirtualLayout((3,), "i4")
        layout[...] = h5py.VirtualSource("other.h5", "tokens/data", (3,))

        def change(file):
            del file["tokens/data"]
            file.create_virtual_dataset("tokens/data", layout)

        damage(path, change)
        assert "tokens/data is put together from other files" in refused(path)

    @pytest.mark.parametrize("name", ["layers/001", "head", "tokenizer"])
    def test_a_model(self, name, tmp_path):
        path = model_file(tmp_path, text=True)
        path.with_name("other.h5").write_bytes(path.read_bytes())

        def change(file):
            del file[name]
            file[name] = h5py.ExternalLink("other.h5", f"/{name}")

        damage(path, change)
        with pytest.raises(InputError, match="is a link to another file"):
            ModelFile(path)

    @pytest.mark.parametrize("target", ["/tokens/data", "/nowhere"])
    def test_a_link_to_itself_or_to_nowhere(self, target, path):
        def change(file):
            del file["tokens/data"]
            file["tokens/data"] = h5py.SoftLink(target)

        damage(path, change)
        refused(path)

    def test_links_within_the_file_are_followed(self, path):
        def change(file):
            file["there"] = file["tokens/data"]
            del file["tokens/data"]
            file["tokens/data"] = h5py.SoftLink("/there")
            file["tokens/again"] = file["/"]

        damage(path, change)
        assert prompts.read(path)[0].tolist() == [1, 2]

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../b", "..", "", 5, None])
    def test_a_checkpoints_index(self, name, tmp_path):
        from hpcmoe.convert.huggingface import _files

        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="not a file of its folder"):
            _files(tmp_path)

    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_what_is_no_regular_file(self, kind, tmp_path):
        path = tmp_path / "p.h5"
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        assert "not a regular file" in refused(path)


class TestSizes:
    """What a file says of itself is checked against what it is."""

    @pytest.mark.parametrize("shape", [(10**15,), (2**60,), (10**6, 10**6)])
    @pytest.mark.parametrize("options", [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}])
    def test_more_than_there_is(self, shape, options, path):
        chunks = {"chunks": (1000,) * len(shape)} if options.pop("chunks", None) else {}
        replace(path, "tokens/data", shape, dtype="i4", **chunks, **options)
        assert "unpacks to" in refused(path)

    def test_many_zeros_in_little_space(self, path):
        replace(path, "tokens/data", (1 << 30,), dtype="i4", chunks=(1 << 20,), compression="gzip")
        packed = zlib.compress(bytes(4 << 20))
        damage(path, lambda file: [file["tokens/data"].id.write_direct_chunk((n << 20,), packed) for n in range(1024)])
        assert "unpacks to 4.3 GB or more" in refused(path)

    def test_a_chunk_that_unpacks_to_more_than_it_says(self, path):
        replace(path, "tokens/data", (1000,), dtype="i4", chunks=(1000,), compression="gzip")
        packed = zlib.compress(bytes(1 << 30), 1)
        damage(path, lambda file: file["tokens/data"].id.write_direct_chunk((0,), packed))
        assert "unpacks to 4001 bytes, and 4000 are due" in refused(path)

    @pytest.mark.parametrize("packed, found", [(zlib.compress(bytes(10)), 10), (zlib.compress(bytes(4000))[:-9], None),
                                               (b"no zlib", 0)])
    @pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"fletcher32": True}])
    def test_a_chunk_that_unpacks_to_less_than_it_says(self, packed, found, more, path):
        """HDF5 itself may read on behind it, and crash, or not."""
        replace(path, "tokens/data", (2000,), dtype="i4", chunks=(1000,), compression="gzip", **more)
        damage(path, lambda file: file["tokens/data"].id.write_direct_chunk((1000,), packed))
        said = refused(path)
        assert "tokens/data has a chunk that unpacks to" in said and "4000 are due" in said
        assert found is None or more.get("fletcher32") or f"to {found} bytes" in said

    @pytest.mark.parametrize("options", [{"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True},
                                         {"compression": "gzip", "shuffle": True, "fletcher32": True},
                                         {"maxshape": (None,)}])
    def test_honest_packing_is_read(self, options, path):
        replace(path, "tokens/data", data=np.array([1, 2, 3], np.int32), chunks=(2,), **options)
        assert prompts.read(path)[0].tolist() == [1, 2]

    def test_a_chunk_that_a_filter_left_as_it_was_is_read(self, path):
        replace(path, "tokens/data", data=np.array([1, 2, 3], np.int32), chunks=(3,), compression="gzip")
        left = np.array([1, 2, 3], np.int32).tobytes()
        damage(path, lambda file: file["tokens/data"].id.write_direct_chunk((0,), left, filter_mask=1))
        assert prompts.read(path)[0].tolist() == [1, 2]

    @pytest.mark.parametrize("options, word", [({"scaleoffset": 0}, "scaleoffset"), ({"compression": "lzf"}, "lzf")])
    def test_other_packing_is_refused_by_name(self, options, word, path):
        replace(path, "tokens/data", data=np.array([1, 2, 3], np.int32), chunks=(2,), **options)
        assert f"tokens/data is packed by {word}" in refused(path)

    def test_chunks_that_are_too_large(self, path):
        replace(path, "tokens/data", (10,), dtype="i4", maxshape=(None,), chunks=(1 << 28,))
        assert "has chunks of 1.1 GB" in refused(path)

    def test_a_model_in_chunks_is_told_how_to_be_one_piece(self, tmp_path):
        path = model_file(tmp_path)
        replace(path, "head", (MOE.vocabulary, MOE.hidden), dtype="f4", chunks=(10, 10))
        with pytest.raises(InputError, match="head does not lie in one piece: h5repack"):
            ModelFile(path)

    def test_a_string_that_is_named_again_and_again(self, path):
        """A file may have one string of a megabyte, and a thousand that are this one."""
        with h5py.File(path, "r+") as file:
            del file["id"]
            file.create_dataset("id", data=np.array(["x" * (1 << 20)] + ["y"] * 999, object), dtype=h5py.string_dtype())
            offset = file["id"].id.get_offset()
        content = bytearray(path.read_bytes())
        content[offset:offset + 16000] = bytes(content[offset:offset + 16]) * 1000
        path.write_bytes(content)
        assert "unpacks to" in refused(path)


class TestChild:
    """It dies in place of the program."""

    @pytest.fixture
    def sick(self, tmp_path, monkeypatch):
        """A module whose `examine` does what the file says."""
        (tmp_path / "sick.py").write_text(
            "import os, time\nfrom hpcmoe import child\nfrom hpcmoe.errors import InputError\n"
            "def examine(path, what):\n    exec(path.read_text())\n"
            "if __name__ == '__main__':\n    child.serve(examine)\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(child, "SECONDS", 1.0)

        def ask(does: str) -> str:
            file = tmp_path / "x"
            file.write_text(does)
            one = Child("sick")
            try:
                return one.ask(file, "")
            finally:
                one.end()
        return ask

    def test_what_it_may_come_to(self, sick):
        assert sick("pass") == ""
        assert sick("raise InputError('so')") == "so"
        assert "RuntimeError: a b" in sick("raise RuntimeError('a\\nb')")
        assert "crashes" in sick("os.abort()")
        assert "crashes" in sick("os.kill(os.getpid(), 11)")
        assert "of memory" in sick("bytes(1 << 30)")
        assert sick("print('noise')") == ""
        assert "File too large" in sick("os.write(os.open(path.with_name('y'), os.O_CREAT | os.O_WRONLY), b'y')")

    def test_one_that_hangs(self, sick):
        begun = time.monotonic()
        assert "takes more than" in sick("while True: pass")
        assert time.monotonic() - begun < 30

    def test_it_ends_with_who_started_it(self, path):
        code = ("import os, sys; from pathlib import Path; from hpcmoe.files import vet\n"
                "vet.check(Path(sys.argv[1]), 'prompts')\n"
                "print(vet._children[vet.HDF5]._process.pid, flush=True); os.kill(os.getpid(), 9)")
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        end = time.monotonic() + 10
        while alive(int(done.stdout)):
            assert time.monotonic() < end
            time.sleep(0.02)

    def test_a_file_is_looked_through_again_when_it_changed(self, path, monkeypatch):
        asked: list[str] = []
        whole = vet._ask
        monkeypatch.setattr(vet, "_ask", lambda *what: asked.append("") or whole(*what))
        for _ in range(3):
            prompts.read(path)
        put_prompts(path, [5, 5])
        prompts.read(path)
        assert len(asked) == 2

    def test_where_no_process_can_be_started_this_one_looks(self, path, monkeypatch, capsys):
        def fails(module):
            raise Unavailable("not here")

        monkeypatch.setattr(vet, "Child", fails)
        vet.end()
        assert len(prompts.read(path)) == 2
        assert "warning: no process can be started" in capsys.readouterr().err
        replace(path, "tokens/data", (10**15,), dtype="i4")
        assert "unpacks to" in refused(path)

    def test_the_working_directory_gives_it_no_modules(self, path, monkeypatch, tmp_path):
        (tmp_path / "h5py.py").write_text("raise SystemExit('mine')")
        monkeypatch.chdir(tmp_path)
        vet.end()
        done = subprocess.run([Path(sys.executable).with_name("hpcmoe"), "show", path], capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr

    def test_every_layout_passes(self, tmp_path):
        for file in all_files(tmp_path):
            vet.check(file)
            vet.check(file, file.stem)

    def test_notices_of_a_batch_system_are_not_for_it(self, path):
        vet.end()
        prompts.read(path)
        for sign in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            vet._children[vet.HDF5]._process.send_signal(sign)
        assert len(prompts.read(put_prompts(path, [1]))) == 1


class TestWords:
    """What others wrote neither steers the terminal nor breaks a line."""

    def test_characters_that_steer_are_escapes(self):
        assert visible("a\x1b[2J\u202eb\r\n\u2028é数\x9b") == "a\\x1b[2J\\u202eb\\r\\n\\u2028é数\\x9b"
        assert visible("a\nb\x07", "\n") == "a\nb\\x07"

    def test_a_key_of_a_job_file(self, capsys, monkeypatch, tmp_path):
        path = tmp_path / "job.toml"
        path.write_text('"a\\u001b[2J\\nb" = 1\n')
        assert_one_line(command(capsys, monkeypatch, "check", path), 2, "a\\x1b[2J\\nb")

    @pytest.mark.parametrize("text", ["a = " + "1" * 5000, "a = " + "[" * 5000, "x" * (2 << 20), "a = [[[[" * 2000])
    def test_a_job_file_beyond_all_bounds(self, text, capsys, monkeypatch, tmp_path):
        path = tmp_path / "job.toml"
        path.write_text(text)
        assert_one_line(command(capsys, monkeypatch, "check", path), 2, "job.toml")

    @pytest.mark.parametrize("key", ["layers = 3", "hidden = 16", "experts = 4", "vocabulary = 300", "heads = 4"])
    def test_a_spec_beyond_all_bounds(self, key, capsys, monkeypatch, tmp_path):
        path = spec_file(tmp_path / "spec.toml")
        path.write_text(path.read_text().replace(key, f"{key.split()[0]} = 1000000000000"))
        assert_one_line(command(capsys, monkeypatch, "check", path), 3, key.split()[0], "at most")

    def test_an_id_and_a_text(self, capsys, monkeypatch, tmp_path):
        prompts.write(tmp_path / "p.h5", ["a\x1b[31m\nb"], [np.array([1])], ["\x1b]0;x\x07 y"])
        told = command(capsys, monkeypatch, "show", tmp_path / "p.h5")
        assert told.code == 0 and "a\\x1b[31m\\nb" in told.out and "\\x1b]0;x\\x07 y" in told.out


class TestNumbers:
    """What cannot be is refused before somebody computes with it."""

    @pytest.mark.parametrize("name, value", [("load", -1), ("load", 2**62), ("timings/mean", np.zeros((1, 2)))])
    def test_of_results(self, name, value, capsys, monkeypatch, tmp_path):
        path = all_files(tmp_path)[-1]
        replace(path, name, data=np.full((2, 4), value) if name == "load" else value)
        told = command(capsys, monkeypatch, "show", path)
        assert told.code == 3 and told.err.count("\n") == 1 and f"results.h5: {name}" in told.err

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
    def test_of_a_probe(self, value, tmp_path):
        times, path = np.array([1.0, 2.0]), tmp_path / "probe.h5"
        ways = {("device", "alltoallv"): "works"}
        probe.write(path, Probe(("a",), "MPI", 16, "m", ways, Speeds(times, times, times)), "none")
        assert probe.read(path).speeds is not None
        replace(path, "exchange/persistent", data=np.array([1.0, value]))
        with pytest.raises(InputError, match="times that cannot be"):
            probe.read(path)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
    def test_of_a_checkpoint(self, value, tmp_path):
        with pytest.raises(InputError, match="x has values that are NaN, infinite, or too large"):
            checked(np.array([[0.0, value]], np.float32), "x", tmp_path)
