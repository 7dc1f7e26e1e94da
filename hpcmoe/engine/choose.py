"""How a job chooses tokens on a CPU."""

import numpy as np

from hpcmoe.config import Generate
from hpcmoe.kernels import choice
from hpcmoe.model.head import Choose


def chooser(rules: Generate) -> Choose:
    """Those that are given, where a job scores; else the likeliest, or drawn."""
    def choose(logits: np.ndarray, prompt: np.ndarray, position: np.ndarray, target: np.ndarray) -> np.ndarray:
        if (target >= 0).all():
            return target
        if rules.temperature == 0:
            return choice.greedy(logits)
        u = np.array([choice.uniform(rules.seed, int(p), int(at)) for p, at in zip(prompt, position)])
        return choice.sample(logits, rules.temperature, rules.top_p, u)
    return choose
