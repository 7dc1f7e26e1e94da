"""The verbs `convert` and `init`: from a source of weights to a model file, with progress."""

from pathlib import Path

from hpcmoe import spec, spec_table
from hpcmoe.convert.gguf import GgufCheckpoint
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.convert.upcycle import Copies, Slices
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import model
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import Source
from hpcmoe.paths import check_output


def convert(source: Path, output: Path, dtype: str, upcycle: str | None, experts: int, top_k: int,
            seed: int) -> None:
    """Writes the checkpoint at `source` as a model file. Raises `InputError`, `JobError`."""
    check_output(output, source, *source.glob("*.json"), *source.glob("*.safetensors"))
    checkpoint = open_checkpoint(source)
    if upcycle and checkpoint.spec.moe:
        raise JobError(f"--upcycle makes experts of a dense model, and {checkpoint.spec.name} has experts already")
    if upcycle == "copies" and top_k > experts:
        raise JobError(f"--top-k {top_k} is more than --experts {experts}")
    if upcycle == "copies":
        copies = Copies(checkpoint, experts, top_k, seed)
        write(output, copies, dtype, copies.same)
    else:
        write(output, Slices(checkpoint, experts) if upcycle else checkpoint, dtype)


def init(path: Path, output: Path, seed: int, dtype: str) -> None:
    """Writes random weights for the spec at `path`. Raises `InputError`, `JobError`."""
    check_output(output, path)
    write(output, Drawn(spec_table.load(path), seed), dtype)


def open_checkpoint(source: Path) -> Source:
    """A GGUF file or a folder in Hugging Face's layout. Raises `InputError`."""
    if not source.exists():
        raise InputError(f"{source} does not exist")
    if source.is_dir():
        return HuggingFaceCheckpoint(source)
    if source.suffix.lower() == ".gguf":
        return GgufCheckpoint(source)
    raise InputError(f"{source}: should be a .gguf file, or a folder with config.json and .safetensors files")


def write(output: Path, source: Source, dtype: str, same=lambda tensor: None) -> None:
    """`files.model.write` with a progress bar, and a line at the end."""
    from tqdm import tqdm
    total = sum(t.values for t in spec.tensors(source.spec))
    with tqdm(total=total, unit=" values", unit_scale=True, disable=None, leave=False) as bar:
        model.write(output, source, dtype, same=same, done=lambda tensor: bar.update(tensor.values) and None)
    print(f"{output}: {source.spec.name}, {total:,} values, {dtype}")
