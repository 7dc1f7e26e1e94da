"""Keep the routing that a run recorded: the experts of sampled tokens, for tests of plans.

    python tests/trained/record.py out.h5 tests/trained/e64/routed.npz
    python tests/trained/record.py out.h5 tests/trained/upcycled/routed.npz --layers 0 6 12 18 24 29

`e64` and `e16` are held-out texts (`prompts.py`) through those models on 16 ranks; `upcycled` are windows of this
project's pages and of the GPL through SmolLM2-135M-Instruct, whose blocks became 16 copies behind gates that nobody
trained (`hpcmoe convert --upcycle copies --experts 16 --top-k 2`): real text, and a very uneven load.
"""

import argparse
from pathlib import Path

import numpy as np

from hpcmoe.files import results


def main() -> None:
    """Writes the file: expert `[n, layers, K]` uint8, rank `[n]` uint8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", help="else all that have experts")
    parser.add_argument("--tokens", type=int, default=4096, help="at most")
    args = parser.parse_args()
    found = results.routing(args.results)
    layers = args.layers or np.flatnonzero(found.load.any(axis=(1, 2))).tolist()
    expert = found.expert[:args.tokens, layers]
    np.savez_compressed(args.output, expert=expert.astype(np.uint8), rank=found.rank[:args.tokens].astype(np.uint8))
    print(f"{args.output}: {len(expert)} tokens, layers {', '.join(map(str, layers))}")


if __name__ == "__main__":
    main()
