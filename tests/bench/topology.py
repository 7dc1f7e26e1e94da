"""`make bench-topology`: what `bench topology` measures of a link whose rate is known.

Two hosts (`twohosts`) with a core each and one rank, then two, on either. Each host sends at a rate of its own. What
the ranks of a host have together is compared with it, and latencies with those of plain sockets.
"""

import contextlib
import socket
import sys
import time

import numpy as np
import twohosts

from hpcmoe import launch
from hpcmoe.bench import topology
from hpcmoe.exchange.interface import until
from hpcmoe.report import text

RATES = ((500e6, 500e6), (125e6, 125e6), (25e6, 25e6), (125e6, 25e6))
"""bytes/s at which the first host sends, and the second."""
RANKS = (1, 2)


def sockets(world: launch.World) -> float:
    """Median seconds of a few bytes from the first rank to the last by TCP, half of there and back. Collective."""
    end, rounds = world.size - 1, 100
    with socket.create_server((twohosts.HOSTS[0], 0)) if world.rank == 0 else contextlib.nullcontext() as server:
        port = world.comm.bcast(server.getsockname()[1] if server else 0)
        if world.rank not in (0, end):
            return 0.0
        with server.accept()[0] if server else socket.create_connection((twohosts.HOSTS[0], port)) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setblocking(False)
            times = []
            for turn in range(2 * rounds):
                times.append(time.perf_counter())
                if turn % 2 == (world.rank > 0):
                    line.send(b"12345678")
                else:
                    until(lambda: arrived(line), world.idle)
            return float(np.median(np.diff(times[::2]))) / 2


def arrived(line: socket.socket) -> bool:
    """Takes a message from a line, if it is there."""
    try:
        return bool(line.recv(8))
    except BlockingIOError:
        return False


def page(world: launch.World) -> None:
    """What a rank does; rank 0 prints. Collective."""
    node = np.array(world.nodes)
    first = world.nodes.index(world.nodes[world.rank]) == world.rank
    grid = text.table(">link", ">measured", ">of it", ">and back", ">measured", ">of it", ">a pair", ">to", ">latency",
                      ">TCP")
    for rates in RATES:
        if first:
            twohosts.shape(rates[world.nodes[world.rank]])
        launch.meet(world.comm)
        alone = sockets(world)
        found = topology.measure(world).topology
        pairs = [found.rate[np.ix_(node == a, node == 1 - a)] for a in (0, 1)]
        cells = []
        for rate, pair in zip(rates, pairs):
            whole = pair.mean() * len(pair)  # each of the host's ranks sends to one other at a time
            cells += [f"{rate / 1e6:.0f}", f"{whole / 1e6:.1f}", f"{whole / rate:.3f}"]
        far = found.latency[node[:, None] != node]
        grid.add_row(*cells, *(f"{edge / 1e6:.1f}" for edge in (np.min(pairs), np.max(pairs))),
                     f"{np.median(far) * 1e6:.0f}", f"{alone * 1e6:.0f}")
    if world.rank == 0:
        out = text.console()
        out.print(f"{world.library}; {text.plural(world.size // 2, 'rank')} and a core on each of two hosts, TCP; MB/s "
                  "and µs")
        out.print(grid)


if __name__ == "__main__":
    sys.exit(twohosts.main(__file__, page, *RANKS))
