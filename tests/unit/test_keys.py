"""The page of a job's keys, and where else they are written down."""

import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

from hpcmoe import config
from hpcmoe.report.keys import page

ROOT = Path(__file__).parents[2]


def test_docs_keys_is_what_the_verb_prints():
    assert (ROOT / "docs" / "keys.md").read_text() == page(), "run: hpcmoe keys > docs/keys.md"


def test_every_key_is_there_once():
    names = [f"{s.name}.{f.name}" for s in fields(config.Job) if s.metadata["help"] and is_dataclass(s.type)
             for f in fields(s.type)] + [f.name for f in fields(config.Job) if not is_dataclass(f.type)]
    assert len(names) > 10 and all(page().count(f"| `{name}`") == 1 for name in names)


def test_the_examples_are_jobs(tmp_path):
    examples = [path for path in (ROOT / "inputs").glob("*.toml") if "model" in tomllib.loads(path.read_text())]
    assert len(examples) >= 3
    for path in examples:
        assert config.load(path, ["model=m", "prompts=p", "output=o"]).mode in ("generate", "score")
