"""Good files of every kind, small, to be damaged; and the verbs that read each."""

import shutil
from pathlib import Path

import numpy as np
from damage import octets, words
from helpers import (
    GOLDENS,
    MOE,
    Given,
    answer,
    byte_tokenizer,
    job_files,
    jsonl,
    pack,
    put_part,
    put_prompts,
    spec_file,
    step_time,
)
from routes import measured, nodes
from test_gguf import LLAMA, write_gguf
from test_plan import a_plan, results_file

from hpcmoe.files import exchange, model, plan, probe, topology
from hpcmoe.files.chat import Chat
from hpcmoe.files.exchange import Figure, Table
from hpcmoe.files.probe import Probe
from hpcmoe.types import Cuts, Hops, Speeds

CHECK = ("check", "job.toml", "--ranks", "4", "--set", "output=new.h5")
RUN = ("run", "job.toml", "--overwrite")
PROMPTS = ("prompts", "p.jsonl", "-o", "new.h5", "--model", "model.h5")
CONVERT = ("convert", "mixtral", "-o", "new.h5")
PLAN = ("plan", "ran.h5", "-o", "new.h5")
KINDS = {
    "model.h5": (octets, [("show", "model.h5"), CHECK, PROMPTS, RUN]),
    "prompts.h5": (octets, [("show", "prompts.h5"), CHECK, RUN]),
    "out.h5": (octets, [("show", "out.h5"), CHECK[:4]]),
    "part.h5": (octets, [("show", "part.h5")]),
    "probe.h5": (octets, [("show", "probe.h5"), (*RUN, "--set", "probe=probe.h5")]),
    "exchange.h5": (octets, [("show", "exchange.h5")]),
    "plan.h5": (octets, [("show", "plan.h5"), (*RUN, "--set", "parallel.plan=plan.h5")]),
    "topology.h5": (octets, [("show", "topology.h5"), (*PLAN, "--topology", "topology.h5")]),
    "ran.h5": (octets, [PLAN, ("report", "ran.h5", "--text", "--hardware", "h200"),
                        ("report", "out.h5", "ran.h5", "--text")]),
    "job.toml": (words, [CHECK, RUN]),
    "spec.toml": (words, [("check", "spec.toml"), ("check", "spec.toml", "--gpu-memory", "80GB")]),
    "p.jsonl": (words, [PROMPTS]),
    "m.gguf": (octets, [("convert", "m.gguf", "-o", "new.h5")]),
    "mixtral/config.json": (words, [CONVERT]),
    "mixtral/tokenizer.json": (words, [CONVERT]),
    "mixtral/model.safetensors": (octets, [CONVERT]),
}
"""By the file's name: how its bytes are damaged, and the verbs."""


def make(folder: Path) -> None:
    """All of them in a new folder."""
    folder.mkdir(parents=True)
    job_files(folder, 3, 5, rest="[generate]\nmax_new_tokens = 3\ntemperature = 0.5\n[schedule]\nmax_sequences = 2\n"
                                 "[compute]\ndevice = \"cpu\"\ndtype = \"float32\"\n")
    model.write(folder / "model.h5", Given(MOE, byte_tokenizer(), chat=Chat("{{ messages }}").json()), "float32")
    put_prompts(folder / "other.h5", [1, 2], [3])
    spec_file(folder / "spec.toml")
    jsonl(folder / "p.jsonl", {"text": "one"}, {"tokens": [1, 2], "id": 7}, {"text": "three", "id": "c"},
          {"messages": [{"role": "user", "content": "four"}]})
    output = folder / "out.h5"
    for turn in range(2):
        part = put_part(output, 0, 0, 0, [answer(0, 5, 6), answer(1, 7)], [step_time(0)])
        if turn == 0:
            part.rename(folder / "part.h5")
    pack(output, 2)
    ways = {("device", "alltoallv"): "works", ("device", "persistent"): "works", ("staged", "alltoallv"): "wrong"}
    sizes = np.array([1.0, 2.0, 4.0])
    probe.write(folder / "probe.h5", Probe(("a",), "MPI", 16, "tiny", ways, Speeds(sizes, sizes, sizes),
                                           Cuts(np.array([1, 2]), sizes[:2], sizes[:2]),
                                           Hops(np.array([1, 2]), sizes[:2], sizes[:2]), 2), "none")
    figures = [Figure("even", 1, 2, *[1e-5] * 6)] * 2
    exchange.write(folder / "exchange.h5", Table(figures, 16, "float32", 5, ("a", "b"), "MPI"))
    plan.write(folder / "plan.h5", a_plan(1))
    topology.write(folder / "topology.h5", measured(nodes(2, 1)))
    results_file(folder / "ran.h5", folder / "model.h5", biased=True)
    write_gguf(folder / "m.gguf", Given(LLAMA))
    shutil.copytree(GOLDENS / "mixtral", folder / "mixtral")
    (folder / "mixtral" / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")
