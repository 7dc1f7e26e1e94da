"""Attention of many tokens of one sequence, by cuDNN.

Plans are made for a number of queries rounded up to whole blocks; how many there are, and how many keys, they read on
the device. What cuDNN writes behind the queries of a sequence lies where the next sequence's follow, and goes first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cudnn
import cupy
import numpy as np

from hpcmoe.device.scratch import BLOCK


@dataclass(frozen=True)
class Shape:
    """What attends to what."""

    heads: int
    """that are computed in one call,"""
    of: int
    """and those that lie side by side in a token's queries"""
    kv_heads: int
    length: int
    """of keys and values, `[kv_heads, length, key_dim or value_dim]`"""
    key_dim: int
    value_dim: int
    scale: float
    sinks: bool = False


@dataclass(frozen=True)
class Plan:
    """How cuDNN computes one number of blocks."""

    graph: Any
    tensors: tuple[Any, ...]
    """of q, k, v, the numbers of queries and keys, the result, and sinks, if there are any"""
    workspace: cupy.ndarray


class Prefill:
    """cuDNN's attention on one stream. Raises `cudnn.cudnnGraphNotSupportedError` where it has none for the shape."""

    def __init__(self, shape: Shape, windows: Iterable[int], stream: cupy.cuda.Stream) -> None:
        """windows: all that calls may have."""
        self._shape = shape
        self._handle = cudnn.create_handle()
        cudnn.set_stream(handle=self._handle, stream=stream.ptr)
        self._plans = {(BLOCK, fresh, window): self._plan(BLOCK, fresh, window)
                       for fresh in (True, False) for window in windows}

    def __call__(self, q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, rows: int, cached: int,
                 lengths: cupy.ndarray, out: cupy.ndarray, window: int = 0, first: int = 0,
                 sinks: cupy.ndarray | None = None) -> None:
        """The first `rows` of q look at their sequence, of which `cached` tokens came before them; heads from `first`.

        q and out `[rows or more in whole blocks, of * key_dim or value_dim]` uint16; keys and values of all in k and v;
        lengths `[2]` int32: rows, and cached + rows, on the device; sinks `[of]` float32.
        """
        key = -(-rows // BLOCK) * BLOCK, cached == 0, window
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        plan, s = self._plans[key], self._shape
        where = [q.data.ptr + first * s.key_dim * q.itemsize, k.data.ptr, v.data.ptr, lengths.data.ptr,
                 lengths.data.ptr + lengths.itemsize, out.data.ptr + first * s.value_dim * out.itemsize]
        if sinks is not None:
            where.append(sinks.data.ptr + first * sinks.itemsize)
        plan.graph.execute(dict(zip(plan.tensors, where)), plan.workspace.data.ptr, handle=self._handle)

    def _plan(self, queries: int, fresh: bool, window: int) -> Plan:
        """`fresh`: the queries are the whole sequence, and need no keys behind their own blocks."""
        s = self._shape
        keys, align = queries if fresh else s.length, cudnn.diagonal_alignment
        graph = cudnn.pygraph(io_data_type=cudnn.data_type.BFLOAT16, intermediate_data_type=cudnn.data_type.FLOAT,
                              compute_data_type=cudnn.data_type.FLOAT, handle=self._handle)
        q = graph.tensor(name="q", dim=[1, s.heads, queries, s.key_dim], stride=_by_token(queries, s.of, s.key_dim))
        k, v = (graph.tensor(name=name, dim=[1, s.kv_heads, keys, d],
                             stride=[s.kv_heads * s.length * d, s.length * d, d, 1])
                for name, d in (("k", s.key_dim), ("v", s.value_dim)))
        counts = [graph.tensor(name=name, dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.INT32)
                  for name in ("queries", "keys")]
        sinks = [graph.tensor(name="sinks", dim=[1, s.heads, 1, 1], stride=[s.heads, 1, 1, 1],
                              data_type=cudnn.data_type.FLOAT)] if s.sinks else []
        out, _ = graph.sdpa(q=q, k=k, v=v, generate_stats=False, attn_scale=s.scale, use_padding_mask=True,
                            seq_len_q=counts[0], seq_len_kv=counts[1], diagonal_band_right_bound=0,
                            diagonal_alignment=align.TOP_LEFT if fresh else align.BOTTOM_RIGHT,
                            **({"diagonal_band_left_bound": window} if window else {}),
                            **({"sink_token": sinks[0]} if sinks else {}))
        out.set_output(True).set_dim([1, s.heads, queries, s.value_dim]).set_stride(
            _by_token(queries, s.of, s.value_dim))
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        return Plan(graph, (q, k, v, *counts, out, *sinks),
                    cupy.empty(max(1, graph.get_workspace_size()), np.uint8))


def _by_token(queries: int, heads: int, d: int) -> list[int]:
    return [queries * heads * d, d, heads * d, 1]


def open_prefill(shape: Shape, windows: Iterable[int], stream: cupy.cuda.Stream) -> Prefill | None:
    """None where cuDNN cannot compute the shape."""
    if shape.key_dim % 8 or shape.value_dim % 8:
        return None
    try:
        return Prefill(shape, windows, stream)
    except cudnn.cudnnGraphNotSupportedError:
        return None
