"""What the routers of a transformers model choose, and how close their choices are."""

import numpy as np
import torch


class Routers:
    """Hooks that note which experts the first router chose, and how close the choices of all routers were."""

    def __init__(self, model):
        blocks = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")]
        gates = [block.router if hasattr(block, "router") else block.gate for block in blocks]
        self.wide = model.config.model_type in ("deepseek_v2", "deepseek_v3", "glm4_moe")  # float32 in bfloat16, too
        for gate in gates:
            gate.register_forward_hook(self.note)
        self.first = gates[0]
        self.reset()

    def reset(self):
        self.experts, self.min_gap = [], np.inf

    def note(self, gate, inputs, output):
        """Keep the chosen experts (first MoE layer) and the smallest relative gap at the choice's edge."""
        logits, _, experts = output
        ranking = self.ranking(gate, logits.float())
        edge = ranking.topk(gate.top_k + 1, dim=-1).values[:, -2:]
        gap = (edge[:, 0] - edge[:, 1]) / edge.abs().amax(-1).clamp(0.5, 1e9)
        self.min_gap = min(self.min_gap, float(gap.min()))
        if gate is self.first:
            order = ranking.gather(1, experts).argsort(dim=-1, descending=True)
            self.experts.append(experts.gather(1, order).to(torch.int32).numpy())

    def ranking(self, gate, logits):
        """What decides: logits, or where the gate is float32, scores; -1e30 outside the best groups."""
        if not self.wide:
            return logits
        biased = hasattr(gate, "e_score_correction_bias")
        scores = logits.sigmoid() + gate.e_score_correction_bias if biased else logits.softmax(-1)
        if (gate.num_group or 1) == 1 or getattr(gate, "topk_method", "") == "greedy":
            return scores
        groups = scores.view(len(scores), gate.num_group, -1)
        worth = groups.topk(2, dim=-1).values.sum(-1) if biased else groups.amax(-1)
        best = worth.topk(gate.topk_group + 1, dim=-1)
        self.min_gap = min(self.min_gap, float((best.values[:, -2] - best.values[:, -1]).min()))
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter(1, best.indices[:, :-1], True)
        return groups.masked_fill(~kept[..., None], -1e30).flatten(1)
