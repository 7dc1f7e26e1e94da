"""Sequences, their micro-batches, and how prompts are dealt."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from models import TINY

from hpcmoe.config import Generate, Job
from hpcmoe.engine.batch import Sequences, deal, split
from hpcmoe.types import Outcome

EOS = 7


def run_all(prompts, rules, slots, max_tokens, chosen, context=64, mode="generate"):
    """Works through `prompts`; `chosen(prompt, n)` is the n-th new token. Returns answers, and rows of each step."""
    job = Job("m", "p", "o", mode, rules)
    sequences = Sequences(replace(TINY, context=context, eos=(EOS,)), job, slots, max_tokens)
    waiting, answers, rows, seen = list(range(len(prompts))), {}, [], dict.fromkeys(range(len(prompts)), 0)
    while waiting or sequences.active:
        while waiting and sequences.free:
            prompt = waiting.pop(0)
            sequences.admit(prompt, prompts[prompt])
        batch = sequences.batch()
        rows.append(batch.rows)
        assert 0 < batch.rows <= max_tokens
        for span in batch.spans:
            here = slice(span.first, span.first + span.rows)
            assert batch.position[here].tolist() == list(range(span.cached, span.cached + span.rows))
        tokens = []
        for prompt, target in zip(batch.prompt.tolist(), batch.target.tolist()):
            tokens.append(chosen(prompt, seen[prompt]) if target < 0 else target)
            seen[prompt] += 1
        outcome = Outcome(np.array(tokens, np.int32), -np.ones(len(tokens), np.float32), np.zeros((4, 6), np.int64),
                          np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros((0, 4, 2), np.int16))
        for answer in sequences.advance(batch, outcome):
            assert answer.prompt not in answers
            answers[answer.prompt] = answer
    return answers, rows


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), slots=st.integers(1, 4), room=st.integers(0, 9),
       new=st.integers(1, 6))
def test_every_prompt_is_answered_once_whatever_the_slots_and_chunks(lengths, slots, room, new):
    prompts = [np.full(n, 10 + number, np.int32) for number, n in enumerate(lengths)]
    answers, _ = run_all(prompts, Generate(new), slots, slots + room, lambda prompt, n: 20 + n)
    assert sorted(answers) == list(range(len(prompts)))
    assert all(a.tokens.tolist() == list(range(20, 20 + new)) and a.stop == "length" for a in answers.values())


def test_a_finished_slot_is_refilled_at_the_next_step():
    prompts = [np.full(1, 10 + n, np.int32) for n in range(3)]
    _, rows = run_all(prompts, Generate(4), 2, 8, lambda prompt, n: EOS if prompt == 0 else 1)
    assert rows == [2, 2, 2, 2, 1]


def test_the_end_token_is_kept_and_ends():
    answers, _ = run_all([np.ones(2, np.int32)], Generate(9), 1, 8, lambda prompt, n: [3, EOS, 5][n])
    assert answers[0].tokens.tolist() == [3, EOS] and answers[0].stop == "eos"
    assert len(answers[0].logprobs) == 2


def test_ignore_eos_goes_on():
    answers, _ = run_all([np.ones(2, np.int32)], Generate(3, ignore_eos=True), 1, 8, lambda prompt, n: EOS)
    assert answers[0].tokens.tolist() == [EOS] * 3 and answers[0].stop == "length"


def test_stop_tokens_end_beside_the_models_own():
    answers, _ = run_all([np.ones(2, np.int32)], Generate(9, stop_tokens=(3,), ignore_eos=True), 1, 8,
                         lambda prompt, n: [EOS, 4, 3, 5][n])
    assert answers[0].tokens.tolist() == [EOS, 4, 3] and answers[0].stop == "eos"


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), slots=st.integers(1, 4), room=st.integers(0, 9))
def test_scoring_asks_for_every_token_of_a_prompt_but_the_first(lengths, slots, room):
    prompts = [np.arange(10, 10 + n, dtype=np.int32) for n in lengths]
    answers, rows = run_all(prompts, Generate(), slots, slots + room, None, mode="score")
    assert sum(rows) == sum(lengths)
    for number, prompt in enumerate(prompts):
        answer = answers[number]
        assert answer.tokens.tolist() == prompt.tolist() and answer.stop == "scored"
        assert np.isnan(answer.logprobs[0]) and answer.logprobs[1:].tolist() == [-1] * (len(prompt) - 1)


def test_the_context_ends_an_answer():
    answers, _ = run_all([np.ones(5, np.int32)], Generate(9), 1, 8, lambda prompt, n: 1, context=8)
    assert len(answers[0].tokens) == 3 and answers[0].stop == "context"


@given(lengths=st.lists(st.integers(1, 20), max_size=8), parts=st.integers(1, 4), room=st.integers(0, 60),
       mode=st.sampled_from(["generate", "score"]))
def test_parts_of_a_batch_are_the_batch(lengths, parts, room, mode):
    sequences = Sequences(TINY, Job("m", "p", "o", mode), len(lengths) + 1, len(lengths) + 1 + room)
    for number, n in enumerate(lengths):
        sequences.admit(number, np.arange(10 * number, 10 * number + n, dtype=np.int32))
    batch = sequences.batch()
    pieces = split(batch, parts)
    assert len(pieces) == parts
    assert np.concatenate([p.token for p in pieces]).tolist() == batch.token.tolist()
    assert np.concatenate([p.position for p in pieces]).tolist() == batch.position.tolist()
    assert [(s.slot, s.cached, s.rows) for p in pieces for s in p.spans] == [(s.slot, s.cached, s.rows)
                                                                          for s in batch.spans]
    assert all(s.first == sum(r.rows for r in p.spans[:n]) for p in pieces for n, s in enumerate(p.spans))
    begin = np.cumsum([0] + [p.rows for p in pieces])
    wanted = [(int(w + b), int(i), int(t)) for p, b in zip(pieces, begin)
              for w, i, t in zip(p.wanted, p.prompt, p.target)]
    assert wanted == list(zip(batch.wanted.tolist(), batch.prompt.tolist(), batch.target.tolist()))


def test_decode_is_cut_evenly():
    sequences = Sequences(TINY, Job("m", "p", "o"), 5, 9)
    for number in range(5):
        sequences.admit(number, np.array([number], np.int32))
    assert [p.rows for p in split(sequences.batch(), 2)] == [2, 3]


@given(free=st.lists(st.integers(0, 5), min_size=1, max_size=9), waiting=st.integers(0, 40))
def test_prompts_go_to_free_slots_evenly(free, waiting):
    ranks = deal(np.array(free), waiting)
    taken = np.bincount(ranks, minlength=len(free)) if ranks else np.zeros(len(free), int)
    assert len(ranks) == min(waiting, sum(free)) and (taken <= free).all()
    left = np.array(free) - taken
    assert all(left[r] >= left.max() - 1 for r in range(len(free)) if taken[r])
