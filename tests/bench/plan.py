"""How long a plan for a large model takes on one core, and how good it is.

    OMP_NUM_THREADS=1 python tests/bench/plan.py [--layers 61]

512 experts, K 8, 61 layers, 512 ranks on 64 nodes, 16,384 sampled tokens. Half of the layers have 64 planted groups
with shuffled labels, the others a gate that nobody trained. All is timed that the verb does but for its files.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from routes import WEIGHTS, counted, gated, nodes, planted, planted_groups, trace

from hpcmoe.placement.assign import ordered
from hpcmoe.placement.demand import Spread
from hpcmoe.placement.policy import POLICIES, Case
from hpcmoe.slots import Placements

EXPERTS, TOP_K, NODES, PER_NODE, TOKENS = 512, 8, 64, 8, 1 << 14
RANKS = NODES * PER_NODE


def main() -> None:
    """Prints a line for each plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=61)
    layers = parser.parse_args().layers
    halves = [trace(like, RANKS, EXPERTS, TOP_K, TOKENS, -(-layers // 2)) for like in (planted(NODES), gated)]
    expert = np.concatenate([half.expert for half in halves], axis=1)[:, :layers]
    routing = counted(expert, halves[0].rank, RANKS, EXPERTS)
    total = 0.0
    for exchange, policy in (("twohop", "linear"), ("twohop", "load"), ("twohop", "topology"), ("flat", "topology")):
        given = Case(routing, nodes(*[PER_NODE] * NODES), WEIGHTS, 1, exchange)
        begun = time.process_time()
        placements = POLICIES[policy](given)
        found = given.predict(placements)
        took = time.process_time() - begun
        total += took
        print(f"{exchange:<7} {policy:<9}{took:5.1f} s; a token sends {found.crossing.mean():.3f} rows to other nodes, "
              f"the slowest ranks take {1e3 * found.total:.1f} ms", flush=True)
        if (exchange, policy) == ("twohop", "topology"):
            print(f"                 {100 * _saved(given, placements):.1f} % of the planted saving found", flush=True)
    print(f"{layers} layers: {total:.1f} s of a core")


def _saved(given: Case, placements: Placements) -> float:
    """Of what the planted groups save over experts in order the part that was found, in the layers that have them."""
    linear, saved, could = POLICIES["linear"](given), 0.0, 0.0
    for layer in range(-(-len(placements) // 2)):
        group = planted_groups(np.random.default_rng([0, layer]), EXPERTS, NODES)
        best = ordered(RANKS, np.arange(RANKS), np.argsort(group, kind="stable"))
        before, found, least = (Spread(given.demands[layer], p, given.topology).crossing
                                for p in (linear[layer], placements[layer], best))
        saved, could = saved + before - found, could + before - least
    return saved / could


if __name__ == "__main__":
    main()
