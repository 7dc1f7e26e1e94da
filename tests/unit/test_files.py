"""prompts.h5, parts and results.h5: what is written comes back, for us and for anyone with h5py."""

from itertools import pairwise

import h5py
import numpy as np
import pytest
from helpers import (
    answer,
    damage,
    origin,
    pack,
    put_part,
    step_time,
    three,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, parts, prompts, results
from hpcmoe.types import STAGES

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


class TestPrompts:
    """prompts.h5"""

    @given(st.lists(st.tuples(IDS, TOKENS), max_size=8))
    @settings(max_examples=30)
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
    @settings(max_examples=30)
    def test_what_is_written_comes_back(self, tmp_path_factory, listed, count):
        answers = [answer(p, *tokens, stop=stop) for p, tokens, stop in listed]
        steps = [step_time(n, wall=0.1 * n) for n in range(count)]
        load = np.arange(8).reshape(2, 4)
        path = put_part(tmp_path_factory.mktemp("p") / "o.h5", 7, 3, 0, answers, steps, load)
        found = parts.read(path)
        assert [(a.prompt, a.tokens.tolist(), a.logprobs.tolist(), a.stop) for a in found.answers] == [
            (a.prompt, a.tokens.tolist(), a.logprobs.tolist(), a.stop) for a in answers
        ]
        assert [(s.step, s.tokens, s.chosen, s.wall, s.stages.tolist()) for s in found.steps] == [
            (s.step, s.tokens, s.chosen, s.wall, s.stages.tolist()) for s in steps
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
        found = parts.finished(output, "job A")
        assert (parts.next_attempt(output), found.done.tolist(), found.damaged) == (3, [0, 3, 4], ())
        assert found.versions == {"hpcmoe test"}

    def test_nothing_is_finished_where_nothing_is(self, tmp_path):
        found = parts.finished(tmp_path / "o.h5", "job A")
        assert parts.next_attempt(tmp_path / "o.h5") == len(found.done) == len(found.damaged) == 0
        assert found.done.dtype == np.int64

    def test_parts_of_another_job_are_refused_and_left_alone(self, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        with pytest.raises(JobError, match=r"another job.*--overwrite"):
            parts.finished(tmp_path / "o.h5", "job B")
        assert path.exists()

    @pytest.mark.parametrize("length", [0, 7, 100, 2000, -1])
    def test_a_truncated_part_is_named_and_costs_its_own_prompts(self, length, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(2, 1)])
        path = put_part(output, 3, 1, 0, [answer(0, 1)])
        path.write_bytes(path.read_bytes()[:length])
        found = parts.finished(output, "job A")
        (wrong, why), = found.damaged
        assert found.done.tolist() == [2] and wrong == path and path.name in why
        assert parts.set_aside(path).name == path.name + ".damaged" and len(parts.files(output)) == 1
        assert parts.next_attempt(output) == 4, "the number is not taken again"
        parts.remove(output)
        assert not parts.folder(output).exists()

    @pytest.mark.parametrize("name", ["identity", "attempt", "tokens", "stop"])
    def test_a_part_that_lacks_something_is_damaged(self, name, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        damage(path, lambda file: (file.attrs if name in file.attrs else file).__delitem__(name))
        found = parts.finished(tmp_path / "o.h5", "job A")
        (wrong, why), = found.damaged
        assert wrong == path and name in why and not len(found.done)

    def test_a_part_of_a_newer_version_is_not_set_aside(self, tmp_path):
        path = put_part(tmp_path / "o.h5", 0, 0, 0, [answer(0, 1)])
        damage(path, lambda file: file.attrs.__setitem__("format_version", 99))
        with pytest.raises(InputError, match="update hpcmoe"):
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
        put_part(output, 1, 0, 0, [answer(2, 1)], [step_time(0, chosen=9)])
        with h5py.File(pack(output)) as file:
            times = {name: file[f"timings/{name}"][:] for name in file["timings"]}
        assert times["attempt"].tolist() == [0, 0, 1] and times["step"].tolist() == [0, 1, 0]
        assert times["tokens"].tolist() == [12, 3, 3] and times["chosen"].tolist() == [4, 2, 9]
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

    def test_a_missing_answer_is_never_packed(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(0, 1), answer(0, 2), answer(2, 1)])
        with pytest.raises(AssertionError, match="each prompt has an answer"):
            pack(output)
        assert not output.exists() and parts.files(output)

    def test_of_an_answer_twice_the_first_is_packed(self, tmp_path):
        output = tmp_path / "o.h5"
        put_part(output, 0, 0, 0, [answer(0, 1), answer(1, 1), answer(2, 1)])
        put_part(output, 0, 1, 0, [answer(1, 9)])
        assert [a.tokens.tolist() for a in results.answers(pack(output))] == [[1], [1], [1]]

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
    @settings(max_examples=50)
    def test_lists_come_back(self, lists):
        with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
            h5.put_ragged(file, "x", [np.array(v, np.int32) for v in lists], "int32", "numbers [m]")
            data, at = h5.ragged(file, "x", None)
            assert [data[a:b].tolist() for a, b in pairwise(at)] == lists
            assert data.dtype == np.int32 and at.dtype == np.int64

    @given(st.lists(IDS, max_size=6))
    @settings(max_examples=50)
    def test_strings_come_back(self, words):
        with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
            h5.put_strings(file, "x", words, "words")
            assert h5.strings(file, "x", None) == words
