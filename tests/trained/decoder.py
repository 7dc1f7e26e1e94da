"""The small byte-level mixture of experts that `train.py` trains: a Mixtral, its tensors named as in checkpoints.

Pre-norm layers of attention with rotary positions and of SwiGLU experts behind a gate: softmax over all experts, the K
best renormalised. The head is the embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, CONTEXT, ACTIVE = 128, 4, 4, 256, 96
"""ACTIVE is K·I: experts are as small as makes all models compute as much for a token."""
THETA, EPS = 10000.0, 1e-5


@dataclass(frozen=True)
class Shape:
    """Of the experts."""

    experts: int
    top_k: int

    @property
    def width(self) -> int:
        """I"""
        return ACTIVE // self.top_k

    def config(self) -> dict[str, object]:
        """config.json"""
        return {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 256,
                "hidden_size": HIDDEN, "intermediate_size": self.width, "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "num_local_experts": self.experts,
                "num_experts_per_tok": self.top_k, "max_position_embeddings": CONTEXT, "rms_norm_eps": EPS,
                "rope_theta": THETA, "sliding_window": None, "hidden_act": "silu", "tie_word_embeddings": True,
                "torch_dtype": "bfloat16", "bos_token_id": None, "eos_token_id": None}


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS) * self.weight


class Attention(nn.Module):
    """Causal, with rotary positions whose pairs lie half a head apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part(x).view(B, T, HEADS, -1).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(rotated(q, turn), rotated(k, turn), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, HIDDEN))


def rotation(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, `[T, head_dim / 2]`."""
    width = HIDDEN // HEADS
    frequency = THETA ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys `[B, heads, T, head_dim]`, turned by their positions."""
    (a, b), (c, s) = x.chunk(2, -1), turn
    return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)


class Experts(nn.Module):
    """SwiGLUs, as one tensor each for gates with ups, and downs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(shape.experts, 2 * shape.width, HIDDEN))
        self.down_proj = nn.Parameter(torch.empty(shape.experts, HIDDEN, shape.width))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x `[T, H]`, weight `[T, E]`. All experts compute all tokens: they are small, and sorting would cost more."""
        E, _, width = self.down_proj.shape
        gate, up = (x @ self.gate_up_proj.flatten(0, 1).T).view(len(x), E, 2 * width).chunk(2, -1)
        inner = F.silu(gate) * up * weight[..., None].to(gate.dtype)
        return inner.flatten(1) @ self.down_proj.transpose(1, 2).flatten(0, 1)


class Mixture(nn.Module):
    """The gate and its experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.gate = nn.Linear(HIDDEN, shape.experts, bias=False)
        self.experts = Experts(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers, the balance loss, and the part of all rows that went to each expert, `[E]`.

        The loss is that of Switch Transformers (Fedus et al., 2021, equation 4): E · Σ load · mean score, 1 where even.
        """
        flat = x.flatten(0, 1)
        score = self.gate(flat).float().softmax(-1)
        best, chosen = score.topk(self.top_k, -1)
        weight = torch.zeros_like(score).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        load = (weight > 0).float().mean(0) / self.top_k
        return self.experts(flat, weight).view_as(x), len(load) * (load * score.mean(0)).sum(), load.detach()


class Layer(nn.Module):
    """Attention, then experts; the names are those of the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), Mixture(shape)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), turn)
        y, balance, load = self.mlp(self.post_attention_layernorm(x))
        return x + y, balance, load


class Decoder(nn.Module):
    """Bytes `[B, T]` to logits `[B, T, 256]`, the mean balance loss, and loads `[L, E]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(256, HIDDEN)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(LAYERS))
        self.norm = Norm()
        for name, weight in self.named_parameters():
            if not name.endswith("norm.weight"):
                adds = 2 * LAYERS if name.endswith(("o_proj.weight", "down_proj")) else 1  # to the residual stream
                nn.init.normal_(weight, std=(adds * weight.shape[-1]) ** -0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, turn = self.embed_tokens(tokens), rotation(tokens.shape[1], tokens.device)
        balances, loads = [], []
        for layer in self.layers:
            x, balance, load = layer(x, turn)
            balances.append(balance)
            loads.append(load)
        return F.linear(self.norm(x), self.embed_tokens.weight), torch.stack(balances).mean(), torch.stack(loads)
