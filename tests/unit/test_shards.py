"""Shards of a job, and their results packed as those of the whole."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import answer, assert_one_line, command, job_files, origin, step_time

from hpcmoe import config, shard
from hpcmoe.engine import inputs
from hpcmoe.errors import JobError
from hpcmoe.files import h5, parts, results
from hpcmoe.files.parts import Part
from hpcmoe.files.prompts import Prompts
from hpcmoe.shard import Shard
from hpcmoe.traffic import Traffic

PROMPTS, COUNT = 10, 3


@pytest.mark.parametrize("prompts", [1, 2, 7, 8, 9])
def test_shards_have_every_prompt_once(prompts):
    rows = [Shard(n, 4).rows(prompts) for n in range(4)]
    assert sorted(np.concatenate(rows)) == list(range(prompts))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("words", ["8/8", "3", "-1/8", "a/b", "1/0", "1/2/3", "0.5/2"])
def test_words_that_are_no_shard(words):
    with pytest.raises(JobError, match="NUMBER/COUNT"):
        shard.parse(words)


def test_a_shard_is_one_job_however_it_is_written(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('model = "m.h5"\nprompts = "p.h5"\noutput = "out.h5"\n')
    assert config.load(path, ["shard=01/08"]) == config.load(path, ["shard=1/8"])


def test_a_shard_is_another_job_with_an_output_of_its_own(tmp_path):
    path = job_files(tmp_path, 3, 4, 5)
    whole, part = config.load(path), config.load(path, ["shard=1/2"])
    assert Path(part.output) == tmp_path / "out.1-of-2.h5"
    read, found = inputs.read(part), inputs.read(whole)
    assert read.rows.tolist() == [1] and found.rows.tolist() == [0, 1, 2]
    assert shard.split(read.identity(part)) == (found.identity(whole), "1/2")
    assert shard.split(found.identity(whole)) == (found.identity(whole), "")


def test_a_shard_without_prompts(tmp_path, capsys, monkeypatch):
    path = job_files(tmp_path, 3, 4)
    ended = command(capsys, monkeypatch, "check", path, "--set", "shard=2/3")
    assert_one_line(ended, 2, "shard 2/3", "2 prompts", "that many shards at most")


def put_shard(folder: Path, number: int, count: int = COUNT, identity: str = "[generate]\nseed = 0\n",
              first: int = 0) -> Path:
    """Results of a shard of `PROMPTS` prompts; its load and its bytes tell its number, prompts begin at `first`."""
    mine = Shard(number, count)
    output = folder / f"out{mine.suffix}.h5"
    rows = mine.rows(PROMPTS)
    answers = tuple(answer(int(row) + first, int(row), 7) for row in rows)
    piece = Part(answers, np.full((2, 4), number + 1, np.int64), (step_time(0), step_time(1)), 0,
                 replace(Traffic.none(2), bytes=np.full((2, 3), number + 1)))
    found = results.Results(answers, tuple(f"id {row}" for row in rows), tuple(f"text {row}" for row in rows),
                            piece.load, results.tabulate([piece]), piece.traffic)
    given = replace(origin(shard.marked(identity, str(mine))), job=f'output = "{output}"\nshard = "{mine}"\n',
                    hosts=(f"host{number}", "shared"))
    results.write(output, given, found)
    return output


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """All shards, in no order."""
    return [put_shard(tmp_path, number) for number in (2, 0, 1)]


def test_packed_shards_are_the_whole_job(three, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.h5"
    ended = command(capsys, monkeypatch, "pack", *three, "-o", output)
    assert ended.code == 0 and "10 prompts" in ended.out, ended
    with h5.reading(output, "results") as file:
        found = results.read(file, output)
        assert [a.prompt for a in found.answers] == list(range(PROMPTS))
        assert [a.tokens.tolist() for a in found.answers] == [[n, 7] for n in range(PROMPTS)]
        assert found.ids == tuple(f"id {n}" for n in range(PROMPTS))
        assert found.texts == tuple(f"text {n}" for n in range(PROMPTS))
        assert (found.load == 6).all() and (found.layers.bytes == 6).all()
        assert found.steps.attempt.tolist() == [0, 0, 1, 1, 2, 2] and found.steps.step.tolist() == [0, 1] * 3
        assert file.attrs["identity"] == "[generate]\nseed = 0\n" and file.attrs["shards"] == COUNT
        assert file.attrs["ranks"] == 6 and len(file["host"]) == 6
        assert 'shard = ""' in file.attrs["job"] and f'output = "{output}"' in file.attrs["job"]
    assert results.is_finished(output, "[generate]\nseed = 0\n")
    assert "of 3 shards" in command(capsys, monkeypatch, "show", output).out


def test_what_is_packed_is_left_alone_or_replaced(three, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.h5"
    assert command(capsys, monkeypatch, "pack", *three, "-o", output).code == 0
    before = output.read_bytes()
    assert "packed already" in command(capsys, monkeypatch, "pack", *three, "-o", output).out
    assert output.read_bytes() == before
    other = [put_shard(tmp_path / "other", n, identity="[generate]\nseed = 1\n") for n in range(COUNT)]
    assert_one_line(command(capsys, monkeypatch, "pack", *other, "-o", output), 2, "another job", "--overwrite")
    assert output.read_bytes() == before
    assert command(capsys, monkeypatch, "pack", *other, "-o", output, "--overwrite").code == 0
    assert results.is_finished(output, "[generate]\nseed = 1\n")


def test_what_is_missing_is_named(three, tmp_path, capsys, monkeypatch):
    three[1].unlink()  # 0
    folder = tmp_path / "out.0-of-3.h5.parts"
    folder.mkdir()
    (folder / "0000-00000-000000.h5").touch()
    ended = command(capsys, monkeypatch, "pack", three[2], "-o", tmp_path / "out.h5")
    given = f"2 ({three[0]} is there but was not given)"
    assert_one_line(ended, 2, "2 of 3 shards are missing", "0 (unfinished", given)
    assert not (tmp_path / "out.h5").exists()


def test_a_shard_that_is_there_twice(three, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(three[0].read_bytes())
    ended = command(capsys, monkeypatch, "pack", *three, copy, "-o", tmp_path / "out.h5")
    assert_one_line(ended, 2, "both shard 2/3", str(copy))


def test_a_shard_of_another_job(three, tmp_path, capsys, monkeypatch):
    odd = put_shard(tmp_path / "other", 1, identity="[generate]\nseed = 5\n")
    ended = command(capsys, monkeypatch, "pack", three[0], three[1], odd, "-o", tmp_path / "out.h5")
    assert_one_line(ended, 2, "another job", "seed = 5", "seed = 0")


def test_a_shard_of_another_array(three, tmp_path, capsys, monkeypatch):
    odd = put_shard(tmp_path, 1, 4)
    ended = command(capsys, monkeypatch, "pack", three[0], three[1], odd, "-o", tmp_path / "out.h5")
    assert_one_line(ended, 2, "shard 1/4", "one array")


def test_results_of_a_whole_job(three, tmp_path, capsys, monkeypatch):
    whole = tmp_path / "out.h5"
    assert command(capsys, monkeypatch, "pack", *three, "-o", whole).code == 0
    ended = command(capsys, monkeypatch, "pack", *three, whole, "-o", tmp_path / "more.h5")
    assert_one_line(ended, 2, str(whole), "packed already")


def test_a_shard_with_prompts_of_others(three, tmp_path, capsys, monkeypatch):
    odd = put_shard(tmp_path, 1, first=1)
    ended = command(capsys, monkeypatch, "pack", three[0], three[1], odd, "-o", tmp_path / "out.h5")
    assert_one_line(ended, 3, str(odd), "prompts of shard 1/3")


def test_an_output_that_is_read_or_something_else(three, tmp_path, capsys, monkeypatch):
    assert_one_line(command(capsys, monkeypatch, "pack", *three, "-o", three[0]), 2, "which is read")
    (tmp_path / "notes.txt").write_text("mine")
    ended = command(capsys, monkeypatch, "pack", *three, "-o", tmp_path / "notes.txt", "--overwrite")
    assert_one_line(ended, 2, "not a results file")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_damaged_shards_end_in_a_line(three, tmp_path, capsys, monkeypatch):
    with h5py.File(three[0], "r+") as file:
        del file["id"]
    ended = command(capsys, monkeypatch, "pack", *three, "-o", tmp_path / "out.h5")
    assert_one_line(ended, 3, str(three[0]), "no dataset id")


def test_as_many_prompts_as_there_are(tmp_path):
    """`results.pack` writes the ids and answers of the shard's own rows."""
    output = tmp_path / "out.h5"
    parts.write(output, 0, 0, 0, Part((answer(3, 1), answer(1, 2)), np.ones((2, 4), np.int64), ()), origin())
    found = Prompts(np.zeros(4, np.int32), np.arange(5), tuple("abcd"))
    results.pack(output, found, origin(), lambda tokens: "", np.array([1, 3]))
    with h5.reading(output, "results") as file:
        assert results.read(file, output).ids == ("b", "d")
