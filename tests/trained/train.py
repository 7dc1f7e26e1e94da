"""Train a small byte-level mixture of experts, whose routing then is learned, and write what `hpcmoe convert` reads.

    python tests/trained/train.py e64                                # E 64, K 4: a few minutes on one GPU
    python tests/trained/train.py e16 --experts 16 --top-k 2
    python tests/trained/train.py other --files a.txt b.txt ...

Needs PyTorch and nothing else. Tokens are bytes; there is no tokenizer. The folder is in Hugging Face's layout, with
bfloat16 weights (`decoder` has the model). Beside them lies held_out.json: bytes of a text that was not trained on, and
the log-probability of each behind those before it, by these weights in float32.
"""

import argparse
import ctypes
import json
import math
import time
from pathlib import Path

import texts
import torch
import torch.nn.functional as F
from decoder import CONTEXT, Decoder, Shape
from torch import Tensor, nn

BALANCE = 0.005
"""Weight of the loss that evens the load: enough that no expert starves, too little to make routing uniform."""
RATE, LEAST_RATE, WARM = 3e-3, 1e-4, 200
TOLD = 250
"""Steps between two lines."""


def batch(data: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows `[B, T]` of a text, and what follows each byte."""
    at = torch.randint(len(data) - CONTEXT - 1, (size, 1), generator=generator).to(data.device)
    rows = data[at + torch.arange(CONTEXT + 1, device=data.device)].long()
    return rows[:, :-1], rows[:, 1:]


def rate(step: int, steps: int) -> float:
    """Warm-up, then half a cosine."""
    done = max(0, step - WARM) / max(1, steps - WARM)
    return min(1, (step + 1) / WARM) * (LEAST_RATE + (RATE - LEAST_RATE) * (1 + math.cos(math.pi * min(1, done))) / 2)


@torch.no_grad()
def look(model: Decoder, data: Tensor, size: int) -> tuple[float, Tensor]:
    """Nats a byte of some windows, always the same, and loads `[L, E]`."""
    generator, losses, loads = torch.Generator().manual_seed(1), [], []
    for _ in range(4):
        tokens, wanted = batch(data, size, generator)
        logits, _, load = model(tokens)
        losses.append(F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten()))
        loads.append(load)
    return float(torch.stack(losses).mean()), torch.stack(loads).mean(0)


def told(load: Tensor) -> str:
    """How uneven it is: the busiest expert's part, of an even one, and how many have less than a tenth, by layer."""
    relative = load * load.shape[1]
    return (f"busiest {' '.join(f'{most:.1f}' for most in relative.amax(1).tolist())}, starved "
            f"{' '.join(map(str, (relative < 0.1).sum(1).tolist()))}")


def train(shape: Shape, data: Tensor, held: Tensor, steps: int, size: int, seed: int) -> Decoder:
    """A model; prints as it goes."""
    torch.manual_seed(seed)
    model, generator = Decoder(shape).to(data.device), torch.Generator().manual_seed(seed)
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) is decayed], "weight_decay": 0.1 * decayed}
              for decayed in (True, False)]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    begin = time.monotonic()
    print(f"{sum(p.numel() for p in model.parameters()):,} weights; {len(data):,} bytes and {len(held):,} held out",
          flush=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        tokens, wanted = batch(data, size, generator)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=data.device.type == "cuda"):
            logits, balance, load = model(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
        optimiser.zero_grad(set_to_none=True)
        (loss + BALANCE * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % TOLD == 0 or step == steps - 1:
            outside, _ = look(model, held, size)
            print(f"step {step}: loss {loss.item():.3f}, held out {outside:.3f} nats/byte, balance "
                  f"{balance.item():.3f}, {told(load)}; {time.monotonic() - begin:.0f} s", flush=True)
    return model


def save(folder: Path, shape: Shape, model: Decoder, held: Tensor) -> None:
    """Rounds the weights, and writes them with what they say of a held-out text."""
    rounded = {name: weight.detach().to(torch.bfloat16) for name, weight in model.state_dict().items()}
    model.load_state_dict({name: weight.float() for name, weight in rounded.items()})
    texts.write_checkpoint(folder, shape.config(), {f"model.{name}": (weight.shape, bits(weight))
                                            for name, weight in rounded.items()})
    model = model.cpu().float()  # no TF32 there
    tokens = held[:CONTEXT - 1].long().cpu()  # a prompt has room for a token
    with torch.no_grad():
        logprob = model(tokens[None])[0][0].log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
    (folder / "held_out.json").write_text(json.dumps(
        {"tokens": tokens.tolist(), "logprobs": [round(value, 6) for value in logprob.tolist()]}) + "\n")


def bits(weight: Tensor) -> bytes:
    """The values of a tensor as they lie in memory."""
    there = weight.cpu().contiguous()
    return ctypes.string_at(there.data_ptr(), there.numel() * there.element_size())


def main() -> None:
    """Trains a model, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--experts", type=int, default=64, help="E; 64")
    parser.add_argument("--top-k", type=int, default=4, help="K; 4")
    parser.add_argument("--files", type=Path, nargs="+", help="texts; else Python's own standard library")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=64, help=f"windows of {CONTEXT} bytes in a step; 64")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = Shape(args.experts, args.top_k)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = texts.read(args.files or texts.python_sources())
    parts = [b"".join(text for path, text in found.items() if texts.held_out(path) is outside)
             for outside in (False, True)]
    if min(map(len, parts)) <= CONTEXT + 1:
        raise SystemExit(f"{len(parts[0])} bytes to train on and {len(parts[1])} held out are too few: give more files")
    data, held = (torch.frombuffer(bytearray(part), dtype=torch.uint8).to(device) for part in parts)
    model = train(shape, data, held, args.steps, args.batch, args.seed)
    save(args.output, shape, model, held)
    loss, load = look(model.to(device), held, args.batch)
    print(f"{args.output}: {loss:.3f} nats/byte ({loss / math.log(2):.3f} bits) on held-out texts, {told(load)}")


if __name__ == "__main__":
    main()
