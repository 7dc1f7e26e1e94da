"""Attention of many tokens of one sequence, by cuDNN.

Plans are made for a number of queries rounded up to whole blocks; how many there are, and how many keys, they read on
the device. What cuDNN writes behind the queries of a sequence lies where the next sequence's follow, and goes first.
"""

import math
from dataclasses import dataclass
from typing import Any

import cudnn
import cupy
import numpy as np

from hpcmoe.device.attention import KvCache
from hpcmoe.device.scratch import BLOCK
from hpcmoe.spec import ModelSpec


@dataclass(frozen=True)
class Plan:
    """How cuDNN computes one number of blocks."""

    graph: Any
    tensors: tuple[Any, ...]
    """of q, k, v, the numbers of queries and keys, and the result"""
    workspace: cupy.ndarray


class Prefill:
    """cuDNN's attention on one stream. Raises `cudnn.cudnnGraphNotSupportedError` where it has none for the model."""

    def __init__(self, model: ModelSpec, cache: KvCache, stream: cupy.cuda.Stream) -> None:
        self._attention, self._cache = model.attention, cache
        self._handle = cudnn.create_handle()
        cudnn.set_stream(handle=self._handle, stream=stream.ptr)
        self._plans = {(BLOCK, fresh): self._plan(BLOCK, fresh) for fresh in (True, False)}

    def __call__(self, q: cupy.ndarray, layer: int, slot: int, rows: int, cached: int, lengths: cupy.ndarray,
                 out: cupy.ndarray) -> None:
        """The first `rows` of q look at their sequence, of which `cached` tokens came before them.

        q and out `[rows or more in whole blocks, heads * head_dim]` uint16; keys and values of all lie in the cache;
        lengths `[2]` int32: rows, and cached + rows, on the device.
        """
        blocks = -(-rows // BLOCK) * BLOCK
        key = blocks, cached == 0
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        plan, cache = self._plans[key], self._cache
        where = (q.data.ptr, cache.k[layer, slot].data.ptr, cache.v[layer, slot].data.ptr, lengths.data.ptr,
                 lengths.data.ptr + lengths.itemsize, out.data.ptr)
        plan.graph.execute(dict(zip(plan.tensors, where)), plan.workspace.data.ptr, handle=self._handle)

    def _plan(self, queries: int, fresh: bool) -> Plan:
        """`fresh`: the queries are the whole sequence, and need no keys behind their own blocks."""
        a, length = self._attention, self._cache.k.shape[3]
        keys, d = queries if fresh else length, a.head_dim
        graph = cudnn.pygraph(io_data_type=cudnn.data_type.BFLOAT16, intermediate_data_type=cudnn.data_type.FLOAT,
                              compute_data_type=cudnn.data_type.FLOAT, handle=self._handle)
        by_token, by_head = [queries * a.heads * d, d, a.heads * d, 1], [a.kv_heads * length * d, length * d, d, 1]
        q = graph.tensor(name="q", dim=[1, a.heads, queries, d], stride=by_token)
        k, v = (graph.tensor(name=name, dim=[1, a.kv_heads, keys, d], stride=by_head) for name in "kv")
        counts = [graph.tensor(name=name, dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.INT32)
                  for name in ("queries", "keys")]
        align = cudnn.diagonal_alignment
        out, _ = graph.sdpa(q=q, k=k, v=v, generate_stats=False, attn_scale=1 / math.sqrt(d), use_padding_mask=True,
                            seq_len_q=counts[0], seq_len_kv=counts[1], diagonal_band_right_bound=0,
                            diagonal_alignment=align.TOP_LEFT if fresh else align.BOTTOM_RIGHT,
                            **({"diagonal_band_left_bound": a.window} if a.window else {}))
        out.set_output(True).set_dim([1, a.heads, queries, d]).set_stride(by_token)
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        return Plan(graph, (q, k, v, *counts, out), cupy.empty(max(1, graph.get_workspace_size()), np.uint8))
