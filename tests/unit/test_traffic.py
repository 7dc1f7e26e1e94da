"""What exchanges took and moved, in parts, in results and on the page."""

import h5py
import numpy as np
import pytest
from helpers import answer, command, damage, origin, pack, put_part, step_time

from hpcmoe.errors import InputError
from hpcmoe.files import parts, results
from hpcmoe.files.parts import Part
from hpcmoe.traffic import Traffic
from hpcmoe.types import StepTime


def traffic(*seconds, exposed=0.5):
    """Of as many layers: half of the time is exposed, and 1, 2 and 3 bytes a second are moved."""
    found = np.array(seconds, float)
    return Traffic(found, exposed * found, (found[:, None] * [1, 2, 3]).astype(np.int64))


def step(number, seconds):
    one = step_time(number)
    return StepTime(one.step, one.tokens, one.chosen, one.wall, one.stages, traffic(seconds).total())


def part(*seconds, prompts=(), attempt=0):
    """A rank's, of steps that took so long, all of it in layer 1 of 2."""
    steps = tuple(step(n, s) for n, s in enumerate(seconds))
    return Part(tuple(answer(p, 1) for p in prompts), np.ones((2, 4), np.int64), steps, attempt,
                traffic(0, sum(seconds)))  # fmt: skip


def finish(output, *pieces):
    """Results of three prompts from some parts."""
    for n, piece in enumerate(pieces):
        parts.write(output, piece.attempt, n, 0, piece, origin())
    return pack(output)


class TestFiles:
    def test_a_part_gives_back_what_it_holds(self, tmp_path):
        path = parts.write(tmp_path / "o.h5", 0, 0, 0, part(2, 4), origin())
        found = parts.read(path)
        assert found.traffic.seconds.tolist() == [0, 6] and found.traffic.bytes.tolist() == [[0, 0, 0], [6, 12, 18]]
        assert [float(s.traffic.exposed) for s in found.steps] == [1, 2]

    def test_results_have_means_of_seconds_and_sums_of_bytes(self, tmp_path):
        output = finish(tmp_path / "o.h5", part(2, 4, prompts=(0, 1, 2)), part(4, 8))
        with h5py.File(output) as file:
            names = [f"{by}/{what}" for by in ("step", "layer") for what in ("seconds", "exposed", "hidden", "bytes")]
            found = {name: file[f"exchange/{name}"][:].tolist() for name in names}
            assert found["step/seconds"] == [3, 6] and found["step/exposed"] == [1.5, 3]
            assert found["step/hidden"] == [0.5, 0.5] and found["step/bytes"] == [[6, 12, 18], [12, 24, 36]]
            assert found["layer/seconds"] == [0, 9] and found["layer/bytes"] == [[0, 0, 0], [18, 36, 54]]
            assert np.isnan(file["exchange/layer/hidden"][0]) and file["exchange/layer/hidden"][1] == 0.5
            assert file["exchange/class"].asstr()[:].tolist() == ["own rank", "same node", "other nodes"]

    def test_attempts_of_other_rank_counts_are_added(self, tmp_path):
        output = finish(tmp_path / "o.h5", part(2, prompts=(0, 1)), part(4), part(5, prompts=(2,), attempt=1))
        with h5py.File(output) as file:
            assert file["exchange/step/seconds"][:].tolist() == [3, 5]
            assert file["exchange/layer/seconds"][:].tolist() == [0, 8]

    def test_parts_of_before_are_taken(self, tmp_path):
        """As a job that a former version left unfinished."""
        put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1), answer(1, 1)], [step_time(0)])
        output = finish(tmp_path / "o.h5", part(5, prompts=(2,), attempt=1))
        with h5py.File(output) as file:
            assert file["exchange/step/seconds"][:].tolist() == [0, 5]

    def test_steps_that_are_missing(self, tmp_path):
        def cut(file):
            del file["exchange/step/bytes"]
            file["exchange/step/bytes"] = np.zeros((1, 3), np.int64)

        output = finish(tmp_path / "o.h5", part(2, 4, prompts=(0, 1, 2)))
        damage(output, cut)
        with h5py.File(output) as file, pytest.raises(InputError, match="exchange/step differ in length"):
            results.steps(file, output)


class TestPage:
    LINE = "exchange 9.0 s, 4.5 s exposed (50 % hidden), 108 B: 17 % own rank, 33 % same node, 50 % other nodes"

    def test_one_line_says_it(self, capsys, monkeypatch, tmp_path):
        output = finish(tmp_path / "o.h5", part(2, 4, prompts=(0, 1, 2)), part(4, 8))
        assert self.LINE in command(capsys, monkeypatch, "show", output).out

    def test_results_of_before_have_none(self, capsys, monkeypatch, tmp_path):
        output = finish(tmp_path / "o.h5", part(2, 4, prompts=(0, 1, 2)))
        damage(output, lambda file: file.pop("exchange"))
        found = command(capsys, monkeypatch, "show", output)
        assert found.code == 0 and "exposed" not in found.out and "combine" in found.out

    def test_a_dense_model_has_none(self, capsys, monkeypatch, tmp_path):
        output = finish(tmp_path / "o.h5", part(0, 0, prompts=(0, 1, 2)))
        assert "exposed" not in command(capsys, monkeypatch, "show", output).out
