"""`export`: results as JSONL, in the form in which OpenAI's and vLLM's batch runners answer requests."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmoe import paths, tables
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, place, prompts, results, vet
from hpcmoe.files.prompts import Prompts
from hpcmoe.files.requests import CHAT
from hpcmoe.files.results import Results

REASON = {"eos": "stop", "length": "length", "context": "length"}
"""Why an answer ended -> what those runners call it."""


def export(source: Path, output: Path, given: Path | None) -> int:
    """Writes a line for each answer in `source`, in their order; returns how many.

    The prompts are `given`, or those that the results' job names. Raises `InputError`, `JobError`.
    """
    paths.check_output(output, source, *([given] if given else []))
    vet.check(source, "results")
    with h5.reading(source, "results") as file:
        found, created = results.read(file, source), h5.attribute(file, "created", source, str)
        try:
            job = tables.parse(h5.attribute(file, "job", source, str))
            model, where = Path(job["model"]).stem, Path(job["prompts"])
            made = int(datetime.datetime.fromisoformat(created).timestamp())
        except (tables.Bad, KeyError, TypeError, ValueError):
            raise InputError(f"{source}: attribute job or created is none: make the file again") from None
    if any(answer.stop == "scored" for answer in found.answers):
        raise JobError(f"{source} has scores, and no answers: export is for jobs with mode = generate")
    if not any(found.texts) and any(len(answer.tokens) for answer in found.answers):
        raise JobError(f"{source} has no texts, for its model has no tokenizer: its tokens are in the file itself")
    asked = prompts.read(given or where)
    wrong = [a.prompt for a, name in zip(found.answers, found.ids)
             if not 0 <= a.prompt < len(asked) or asked.ids[a.prompt] != name]
    if wrong:
        raise InputError(f"{given or where} does not have the prompts of {source}: give those with --prompts")
    with place.writing(output) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(found, asked, model, made))
    return len(found.answers)


def _lines(found: Results, asked: Prompts, model: str, created: int) -> Iterator[dict[str, Any]]:
    for answer, name, text in zip(found.answers, found.ids, found.texts):
        talk = bool(asked.urls) and asked.urls[answer.prompt] == CHAT
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if talk else {"text": text}
        used, new = len(asked[answer.prompt]), len(answer.tokens)
        body = {"id": f"{'chatcmpl' if talk else 'cmpl'}-{answer.prompt}",
                "object": "chat.completion" if talk else "text_completion", "created": created, "model": model,
                "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": REASON[answer.stop]}],
                "usage": {"prompt_tokens": used, "completion_tokens": new, "total_tokens": used + new}}
        response = {"status_code": 200, "request_id": f"request-{answer.prompt}", "body": body}
        yield {"id": f"answer-{answer.prompt}", "custom_id": name, "response": response, "error": None}
