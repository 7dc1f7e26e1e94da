"""Answers that have begun: how they are kept, and how any rank goes on with them."""

from dataclasses import astuple, replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
from helpers import answer, command, damage, origin, put_part, step_time
from hypothesis import given
from hypothesis import strategies as st
from models import TINY

from hpcmoe.config import Generate, Job
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.output import left_by
from hpcmoe.engine.pool import Pool
from hpcmoe.engine.record import Record
from hpcmoe.errors import JobError
from hpcmoe.files import begun, h5, parts
from hpcmoe.files.parts import Part
from hpcmoe.files.prompts import Prompts
from hpcmoe.kernels.attention import SHORT
from hpcmoe.traffic import Traffic
from hpcmoe.types import Begun, Outcome


def some(prompt: int, *tokens: int) -> Begun:
    """An answer so far, whose log-probabilities tell the token."""
    return Begun(prompt, np.array(tokens, np.int32), -np.array(tokens, np.float32) / 7)


def same(a: Begun, b: Begun) -> bool:
    """To the bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(*(map(np.asarray, astuple(one)) for one in (a, b))))


class TestFiles:
    """begun-ATTEMPT-RANK-SEQ.h5"""

    @given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), max_size=5))
    def test_what_is_written_comes_back(self, tmp_path_factory, lists):
        wanted = [replace(some(n, *tokens), first=n / 3 if n % 2 else nan) for n, tokens in enumerate(lists)]
        found = begun.read(begun.write(tmp_path_factory.mktemp("b") / "o.h5", 0, 3, 1, wanted, origin()))
        assert len(found) == len(wanted) and all(map(same, found, wanted))

    def test_of_a_version_that_did_not_tell_when_first_tokens_came(self, tmp_path):
        path = begun.write(tmp_path / "o.h5", 0, 0, 0, [replace(some(4, 1), first=1.0)], origin())
        damage(path, lambda file: file.pop("first_token"))
        assert same(begun.read(path)[0], some(4, 1))

    def test_of_a_prompt_the_longest_counts(self, tmp_path):
        output = tmp_path / "o.h5"
        begun.write(output, 0, 0, 0, [some(4, 1, 2), some(2, 9)], origin())
        begun.write(output, 0, 0, 1, [some(4, 1, 2, 3)], origin())
        begun.write(output, 1, 2, 0, [some(2, 9, 8)], origin())
        assert [one.tokens.tolist() for one in begun.gather(output, "job A")] == [[9, 8], [1, 2, 3]]
        assert parts.files(output) == [], "they are no parts"

    def test_what_some_ranks_had_committed_in_an_attempt_is_found(self, tmp_path):
        """What is theirs to go on with, when they died."""
        output = tmp_path / "o.h5"
        for attempt, rank, prompt in ((3, 1, 10), (3, 2, 11), (3, 11, 12), (2, 1, 13)):
            part = Part((answer(prompt),), np.zeros((1, 1), np.int64), (), attempt)
            parts.write(output, attempt, rank, 0, part, origin())
            begun.write(output, attempt, rank, 1, [some(prompt + 50, 1, 2)], origin())
        done, started = left_by(Job("m", "p", str(output)), 3, [1, 11], 97)
        assert done == {10, 12} and sorted(one.prompt for one in started) == [60, 62]

    def test_one_that_is_damaged_is_done_without(self, tmp_path):
        output = tmp_path / "o.h5"
        path = begun.write(output, 0, 0, 0, [some(4, 1, 2)], origin())
        begun.write(output, 0, 1, 0, [some(5, 6)], origin())
        path.write_bytes(path.read_bytes()[:-9])
        assert [one.prompt for one in begun.gather(output, "job A")] == [5]

    @pytest.mark.parametrize(("tokens", "right"), [((0, 96), True), ((), False), ((1, 97), False), ((-1, 1), False),
                                                   ((1, 1, 1), False)])
    def test_what_no_run_of_the_job_can_have_left_is_not_gone_on_with(self, tokens, right):
        assert begun.fits(some(0, *tokens), vocabulary=97, most=3) is right

    def test_another_jobs_are_refused(self, tmp_path):
        begun.write(tmp_path / "o.h5", 0, 0, 0, [some(4, 1)], origin("job B"))
        with pytest.raises(JobError, match="another job"):
            begun.gather(tmp_path / "o.h5", "job A")

    def test_a_new_attempt_puts_all_into_one_file(self, tmp_path):
        output = tmp_path / "o.h5"
        for rank in range(3):
            begun.write(output, 0, rank, 0, [some(rank, 1, 2)], origin())
        found = begun.gather(output, "job A")
        attempt = parts.next_attempt(output)
        for _ in range(2):  # a job that dies at once is begun again, with no more than that
            begun.settle(output, attempt, found, origin())
            assert len(begun.files(output)) == 1 and all(map(same, begun.gather(output, "job A"), found))
        assert attempt == 1 and parts.next_attempt(output) == 2
        begun.settle(output, 2, (), origin())
        assert not begun.files(output)

    def test_show_shows_them(self, tmp_path, capsys, monkeypatch):
        path = begun.write(tmp_path / "o.h5", 0, 0, 0, [some(4, 1, 2), some(7, 3)], origin())
        shown = command(capsys, monkeypatch, "show", path)
        assert shown.code == 0 and "begun" in shown.out and "prompt 4" in shown.out and "2 tokens so far" in shown.out


class TestRecord:
    """What a rank commits."""

    def record(self, output: Path, every: float, check=lambda: None) -> Record:
        return Record(output, 0, 0, origin(), every, (4, 6, 2), check)

    def add(self, record: Record, answers=(), unfinished=()) -> None:
        record.add(answers, np.zeros((4, 6), np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64),
                   np.zeros((1, 4, 2), np.int16), Traffic.none(4), step_time(0), lambda: unfinished)

    def test_what_has_begun_is_committed_too_and_what_is_superseded_goes(self, tmp_path):
        output, record = tmp_path / "o.h5", self.record(tmp_path / "o.h5", 1e-9)
        for length in range(1, 6):
            self.add(record, unfinished=[some(3, *range(length))])
            assert len(begun.files(output)) == 1
        assert begun.gather(output, "job A")[0].tokens.tolist() == [0, 1, 2, 3, 4]
        assert len(parts.files(output)) == 5
        self.add(record, [answer(3, *range(6))])
        assert not begun.files(output)
        assert parts.finished(output, "job A").done.tolist() == [3]

    def test_0_commits_behind_steps_with_answers_only(self, tmp_path):
        output, record = tmp_path / "o.h5", self.record(tmp_path / "o.h5", 0)
        self.add(record, unfinished=[some(3, 1)])
        assert not parts.files(output)
        self.add(record, [answer(1, 1)], [some(3, 1, 2)])
        assert len(parts.files(output)) == len(begun.files(output)) == 1

    def test_where_a_process_dies_between_both_files_the_answer_counts(self, tmp_path, monkeypatch):
        output, record = tmp_path / "o.h5", self.record(tmp_path / "o.h5", 1e-9)
        self.add(record, unfinished=[some(3, 1)])
        monkeypatch.setattr(begun, "write", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.add(record, [answer(3, 1, 2)], [some(4, 1)])
        assert parts.finished(output, "job A").done.tolist() == [3]
        assert [one.prompt for one in begun.gather(output, "job A")] == [3]

    def test_nothing_is_written_where_the_lock_is_lost(self, tmp_path):
        def lost():
            raise JobError("lost")
        record = self.record(tmp_path / "o.h5", 1e-9, lost)
        with pytest.raises(JobError, match="lost"):
            self.add(record, [answer(1, 1)])
        assert not parts.folder(tmp_path / "o.h5").exists()


def test_the_pool_gives_those_that_have_begun_first():
    prompts = Prompts(np.arange(6, dtype=np.int32), np.arange(7), tuple("abcdef"))
    pool = Pool(prompts, [0, 2, 3, 5], [some(5, 1), some(2, 1, 1)])
    taken = [(task.prompt, len(task.begun.tokens) if task.begun else 0) for task in pool.take(3)]
    assert taken == [(2, 2), (5, 1), (0, 0)]
    assert len(pool) == 1 and pool.take(1)[0].tokens.tolist() == [3] and len(pool) == 0


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), stops=st.lists(st.integers(1, 25), max_size=3),
       room=st.lists(st.integers(0, 12), min_size=4, max_size=4), new=st.integers(1, 25))
def test_an_answer_that_is_interrupted_anywhere_is_the_same(lengths, stops, room, new):
    """Each run has other slots and steps; the model sees all tokens in order, saved ones as decode does. When its first
    token came is told by the run that made it: slots are given at 100, 1100, …, and each step takes a second."""
    model = replace(TINY, eos=())
    waiting, found, kept = {n: np.full(length, n, np.int32) for n, length in enumerate(lengths)}, {}, {}
    came: dict[int, float] = {}
    for run, (steps, more) in enumerate(zip([*stops, 10**6], room)):
        job, begin = Job("m", "p", "o", "generate", Generate(new)), 1000.0 * run + 100
        clock = [begin]
        sequences = Sequences(model, job, len(lengths), len(lengths) + more, lambda clock=clock: clock[0])
        for number, tokens in waiting.items():
            sequences.admit(number, tokens, kept.get(number))
        while sequences.active and steps:
            steps -= 1
            batch = sequences.batch()
            for span in batch.spans:
                tokens = batch.token[span.first:span.first + span.rows]
                new_ones = [t for t in tokens.tolist() if t >= 1000]
                assert len(new_ones) in (0, span.rows) and len(new_ones) <= SHORT
                if new_ones:
                    assert [t % 1000 for t in new_ones] == [p - lengths[new_ones[0] // 1000 - 1] for p in
                                                            batch.position[span.first:span.first + span.rows]]
            at = batch.position[batch.wanted] + 1
            chosen = [1000 * (int(p) + 1) + int(a) - lengths[int(p)] for p, a in zip(batch.prompt, at)]
            outcome = Outcome(np.array(chosen, np.int32), -np.array(chosen, np.float32), np.zeros((4, 6), np.int64),
                              np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros((0, 4, 2), np.int16))
            clock[0] += 1
            for prompt in batch.prompt.tolist():
                came.setdefault(prompt, clock[0] - begin)
            for one in sequences.advance(batch, outcome):
                assert one.prompt not in found
                found[one.prompt] = one
                del waiting[one.prompt]
        kept = {one.prompt: one for one in sequences.begun()}
        assert all(len(one.tokens) == len(one.logprobs) > 0 for one in kept.values())
        assert all(one.first == came[one.prompt] for one in kept.values())
    assert {number: one.first for number, one in found.items()} == came
    for number in range(len(lengths)):
        assert found[number].tokens.tolist() == [1000 * (number + 1) + n for n in range(new)]
        assert found[number].logprobs.tolist() == (-found[number].tokens.astype(np.float32)).tolist()


def test_scores_do_not_begin():
    sequences = Sequences(TINY, Job("m", "p", "o", "score"), 2, 4)
    sequences.admit(0, np.arange(9, dtype=np.int32))
    assert sequences.begun() == ()


def test_what_nobody_told_stays_unknown():
    """An older version began it: its first token came before."""
    sequences = Sequences(TINY, Job("m", "p", "o"), 1, 4)
    sequences.admit(0, np.arange(2, dtype=np.int32), some(0, 5))
    for _ in range(2):
        batch = sequences.batch()
        n = len(batch.wanted)
        sequences.advance(batch, Outcome(np.full(n, 9, np.int32), np.zeros(n, np.float32), *[np.zeros(0)] * 4))
    assert len(sequences.begun()[0].tokens) > 1 and np.isnan(sequences.begun()[0].first)


def test_parts_and_what_has_begun_go_together(tmp_path):
    output = tmp_path / "o.h5"
    put_part(output, 0, 0, 0, [answer(1, 1)])
    begun.write(output, 0, 0, 0, [some(2, 1)], origin())
    (parts.folder(output) / ".begun-0000-00000-000001.h5.host-1.tmp").touch()
    with h5.reading(begun.files(output)[0], "begun"):
        pass
    parts.remove(output)
    assert not parts.folder(output).exists()
