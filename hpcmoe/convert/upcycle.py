"""A dense model as a mixture of experts that gives the same answers.

For tests and demonstrations of the machinery with a real model: routing, traffic and imbalance are real,
but the experts have not learned to differ.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import Source
from hpcmoe.spec import ModelSpec, Moe, Tensor, layer_tensors


def _width(model: ModelSpec) -> int:
    assert model.dense is not None
    return model.dense.hidden


def _block(source: Source, tensor: Tensor) -> Tensor:
    """The tensor of the dense block that `tensor`, of an expert, is made of."""
    name = re.sub(r"experts/\d+", "dense", tensor.name)
    assert tensor.layer is not None
    return next(t for t in layer_tensors(source.spec, tensor.layer) if t.name == name)


class Copies:
    """Every expert is the whole dense block, behind a random gate. A `files.model.Source`.

    The K weights sum to 1, so the sum of K equal answers is the dense one.
    """

    def __init__(self, source: Source, experts: int, top_k: int, seed: int) -> None:
        moe = Moe(experts, top_k, _width(source.spec))
        self.spec = replace(source.spec, name=f"{source.spec.name}, {experts} copies", dense=None, moe=moe)
        self.tokenizer, self.chat = source.tokenizer, source.chat
        self._source, self._gates = source, Drawn(self.spec, seed)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        if tensor.part == "gate":
            return self._gates.blocks(tensor)
        return self._source.blocks(tensor if tensor.expert is None else _block(self._source, tensor))

    def same(self, tensor: Tensor) -> str | None:
        """The tensor of expert 0, for those of the others."""
        return re.sub(r"experts/\d+", "experts/000", tensor.name) if tensor.expert else None


class Slices:
    """The dense block is cut along its width; every token goes to all E experts. A `files.model.Source`.

    The gate is zero, so each weight is 1 / E; the spec's scale of E makes it 1. Where E does not divide the width,
    the last slices are filled up with zeros, which add nothing.
    """

    def __init__(self, source: Source, experts: int) -> None:
        self._source, self._slice = source, -(-_width(source.spec) // experts)
        moe = Moe(experts, experts, self._slice, scale=float(experts))
        self.spec = replace(source.spec, name=f"{source.spec.name}, {experts} slices", dense=None, moe=moe)
        self.tokenizer, self.chat = source.tokenizer, source.chat
        self._cached: dict[str, np.ndarray] = {}

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        if tensor.part == "gate":
            yield np.zeros(tensor.shape, np.float32)
        elif tensor.expert is None:
            yield from self._source.blocks(tensor)
        else:
            yield self._cut(tensor, self._whole(_block(self._source, tensor)))

    def _whole(self, tensor: Tensor) -> np.ndarray:
        """Experts have one after another of each of their two tensors, all from the same two."""
        if tensor.name not in self._cached:
            self._cached = dict(list(self._cached.items())[-1:])
            self._cached[tensor.name] = np.concatenate(list(self._source.blocks(tensor)))
        return self._cached[tensor.name]

    def _cut(self, tensor: Tensor, whole: np.ndarray) -> np.ndarray:
        assert tensor.expert is not None
        part = slice(tensor.expert * self._slice, (tensor.expert + 1) * self._slice)
        out = np.zeros(tensor.shape, np.float32)
        if tensor.name.endswith("down"):
            columns = whole[:, part]
            out[:, :columns.shape[1]] = columns
        else:
            for half, rows in enumerate(np.split(whole, 2)):
                out[half * self._slice:][:len(rows[part])] = rows[part]
        return out


