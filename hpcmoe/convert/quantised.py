"""Which tensors of a checkpoint make up one of its weights: it alone, or its quantised values and their scales."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmoe.convert.keys import Keys
from hpcmoe.convert.stored import DTYPES, Part, Stored
from hpcmoe.errors import InputError


@dataclass(frozen=True)
class Quantisation:
    """How weights may be quantised."""

    method: str = ""
    """fp8, mxfp4, or none"""
    block: tuple[int, int] = (1, 1)
    """of fp8: rows and columns that share a scale"""


def quantisation(table: Any, path: Path) -> Quantisation:
    """What `quantization_config` of the config.json at `path` says. Raises `InputError`."""
    if table is None:
        return Quantisation()
    if not isinstance(table, dict):
        raise InputError(f"{path}: quantization_config should be a table")
    keys = Keys(table, f"{path}, quantization_config")
    method = keys.take("quant_method")
    if method not in ("fp8", "mxfp4"):
        raise keys.refused("quant_method", method, "fp8 or mxfp4")
    keys.items("modules_to_not_convert")  # a tensor's own dtype tells
    if method == "mxfp4":
        keys.finish()
        return Quantisation(method)
    keys.only("fmt", "e4m3")
    keys.only("activation_scheme", "dynamic")
    keys.only("scale_fmt", "float", "ue8m0")
    block = keys.items("weight_block_size")
    if len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise keys.wrong("weight_block_size", block, "two whole numbers")
    keys.finish()
    return Quantisation(method, (block[0], block[1]))


@dataclass
class Tensors:
    """What the files of `folder` hold, and which of it has been asked for."""

    folder: Path
    stored: dict[str, Stored]
    quantised: Quantisation
    _used: set[str] = field(default_factory=set)

    def part(self, name: str, expert: int | None) -> Part | None:
        """The weight `name`, which may end as names do in `names`; None where there is none. Raises `InputError` where
        it is of a kind that is not read."""
        turned, plain = name.endswith(".T"), name.removesuffix(".T").removesuffix("[e]")
        index = expert if "[e]" in name else None
        if self.quantised.method == "mxfp4" and f"{plain}_blocks" in self.stored:
            return self._mxfp4(plain, index)
        if plain not in self.stored:
            return None
        found = self._take(plain)
        if self.quantised.method == "fp8" and found.kind == "F8_E4M3":
            return self._fp8(found, index, turned)
        if found.kind not in DTYPES:
            raise InputError(f"{self.folder}: {plain} is {found.kind}, which is not read; {', '.join(sorted(DTYPES))} "
                             "are, and float8 and MXFP4 where config.json says how they were quantised")
        return Part(found, expert=index, turned=turned)

    def _take(self, name: str) -> Stored:
        self._used.add(name)
        return self.stored[name]

    def _scales(self, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Stored:
        if name not in self.stored:
            raise InputError(f"{self.folder}: no file has the tensor {name}, the scales of quantised weights")
        scales = self._take(name)
        if scales.kind not in kinds or scales.shape != shape:
            raise InputError(f"{self.folder}: {name} is {scales.kind} of shape {scales.shape}, and should be "
                             f"{' or '.join(kinds)} of {shape}")
        return scales

    def _fp8(self, values: Stored, expert: int | None, turned: bool) -> Part:
        if len(values.shape) < 2:
            raise InputError(f"{self.folder}: {values.name} is float8, but no matrix")
        *first, rows, columns = values.shape
        high, wide = self.quantised.block
        blocks = -(-rows // high), -(-columns // wide)
        scales = self._scales(f"{values.name}_scale_inv", tuple(DTYPES), (*first, *blocks))
        return Part(values, scales, (high, wide), expert, turned)

    def _mxfp4(self, name: str, expert: int | None) -> Part:
        """Matrices are `[out, in]`, unlike those that are not quantised."""
        values = self._take(f"{name}_blocks")
        if values.kind != "U8" or len(values.shape) != 4 or values.shape[3] != 16:
            raise InputError(f"{self.folder}: {values.name} is {values.kind} of shape {values.shape}, and should be U8 "
                             "of [experts, out, in / 32, 16]")
        return Part(values, self._scales(f"{name}_scales", ("U8",), values.shape[:3]), expert=expert)

    def unused(self) -> list[str]:
        """Names of tensors that nobody asked for."""
        return [name for name in self.stored if name not in self._used]
