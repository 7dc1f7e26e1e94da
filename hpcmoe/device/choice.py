"""The next token; choice.cu. Twin: `kernels.choice`."""

import cupy
import numpy as np

from hpcmoe.device.cuda import launch


def next_token(logits: cupy.ndarray, target: cupy.ndarray, u: cupy.ndarray, temperature: float,
               top_p: float) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Of logits `[B, V]` uint16: the token (int32), and its log-probability (float32), `[B]` each.

    It is target `[B]` int32 where that is not negative; the likeliest where temperature is 0; else drawn by u `[B]`
    float64.
    """
    token, logprob = cupy.empty(len(logits), np.int32), cupy.empty(len(logits), np.float32)
    launch("choice.next_token", len(logits), logits, target, u, token, logprob, logits.shape[1],
           np.float64(temperature), np.float64(top_p), threads=1024)
    return token, logprob
