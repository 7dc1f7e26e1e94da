"""Which models the kernels can compute."""

from hpcmoe.device.attention import WIDEST
from hpcmoe.device.gate import MOST_EXPERTS
from hpcmoe.errors import InputError
from hpcmoe.spec import ModelSpec


def check_model(model: ModelSpec) -> None:
    """Raises `InputError` where the kernels cannot compute a model: rows are moved by 8 values."""
    moe, a = model.moe, model.attention
    widths = {"hidden": model.hidden, "moe.hidden": moe.hidden if moe else 8, "dense.hidden": model.dense.hidden
              if model.dense else 8, "moe.shared_hidden": moe.shared_hidden if moe else 8}
    unknown = [word for word, there in (
        ("attention with a latent", a.latent), ("sinks", a.sinks), ("biases of answers", a.output_bias),
        ("heads that turn in part", a.turning != a.head_dim), ("windows in some layers", a.window_layers),
        ("a factor on scores", a.score_factor != 1), ("norms with the weight first", model.norm_weight_first),
        ("biases of logits or experts", moe and (moe.logit_bias or moe.expert_bias)),
        ("bounds of experts", moe and moe.limit)) if there]
    if unknown:
        raise InputError(f"model {model.name} has {unknown[0]}, which GPUs do not compute yet; compute.device = cpu "
                         "does")
    odd = [f"{name} = {width}" for name, width in widths.items() if width % 8]
    if odd or a.head_dim % 2 or a.head_dim > WIDEST or (moe and (moe.top_k > WIDEST or moe.experts > MOST_EXPERTS)):
        raise InputError(f"model {model.name} cannot be computed on a GPU: " + (
            f"{', '.join(odd)}: should be multiples of 8" if odd else
            f"heads should have an even number of values, {WIDEST} at most, a token {WIDEST} experts, and a layer "
            f"{MOST_EXPERTS} at most")
            + "; compute.device = cpu computes it")
