"""Which models the kernels can compute."""

from hpcmoe.device.attention import WIDEST, WIDEST_LATENT
from hpcmoe.device.gate import MOST_EXPERTS
from hpcmoe.errors import InputError
from hpcmoe.spec import ModelSpec


def check_model(model: ModelSpec, shards: int = 1) -> None:
    """Raises `InputError` where the kernels cannot compute a model, with experts in so many shards.

    Rows are moved by 8 values.
    """
    moe, a = model.moe, model.attention
    widths = {"hidden": model.hidden, "moe.hidden": moe.hidden if moe else 8, "dense.hidden": model.dense.hidden
              if model.dense else 8, "moe.shared_hidden": moe.shared_hidden if moe else 8}
    odd = [f"{name} = {width}" for name, width in widths.items() if width % 8]
    if moe and shards > 1 and moe.hidden % (8 * shards):
        odd.append(f"{shards} shards (parallel.expert_tensor) of moe.hidden = {moe.hidden}")
    wide = a.latent.rank + a.latent.rotary_dim > WIDEST_LATENT if a.latent else a.head_dim % 2 or a.head_dim > WIDEST
    if odd or wide or (moe and (moe.top_k * shards > WIDEST or moe.experts > MOST_EXPERTS)):
        raise InputError(f"model {model.name} cannot be computed on a GPU: " + (
            f"{', '.join(odd)}: should be multiples of 8" if odd else
            f"heads should have an even number of values, {WIDEST} at most, a latent and its turned key "
            f"{WIDEST_LATENT} at most, a token {WIDEST} experts, and a layer {MOST_EXPERTS} at most")
            + "; compute.device = cpu computes it")
