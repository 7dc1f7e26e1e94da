"""Parts of tensors, from any source of weights."""

from collections.abc import Iterator

import numpy as np

from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile, Source
from hpcmoe.slots import Piece
from hpcmoe.spec import Tensor


def blocks(source: Source, tensor: Tensor) -> Iterator[np.ndarray]:
    """`source.blocks` of a tensor, or of a `Piece`: a model file and a generator give its rows without the rest (of
    narrow columns HDF5 reads the rest too, 64 KiB at once); of checkpoints of others the whole is read."""
    if not isinstance(tensor, Piece) or isinstance(source, (ModelFile, Drawn)):
        yield from source.blocks(tensor)
        return
    whole = np.concatenate(list(source.blocks(Tensor(tensor.name, tensor.whole, tensor.part, tensor.expert))))
    for first, end in tensor.rows:
        yield whole[tensor.within(slice(first, end))]
