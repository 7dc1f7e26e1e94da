"""Parts of tensors, from any source of weights."""

from collections.abc import Iterator

import numpy as np

from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile, Source
from hpcmoe.slots import Piece
from hpcmoe.spec import Tensor


def blocks(source: Source, tensor: Tensor) -> Iterator[np.ndarray]:
    """`source.blocks` of a tensor, or of a `Piece`: a model file and a generator give its rows without the rest; of
    checkpoints of others the whole is read."""
    if not isinstance(tensor, Piece) or isinstance(source, (ModelFile, Drawn)):
        yield from source.blocks(tensor)
        return
    row = 0
    for block in source.blocks(Tensor(tensor.name, tensor.whole, tensor.part, tensor.expert)):
        for first, end in tensor.rows:
            part = block[tensor.within(slice(max(first - row, 0), max(end - row, 0)))]
            if len(part):
                yield part
        row += len(block)
