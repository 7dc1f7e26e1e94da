"""`bench topology` between real ranks, at sizes where nothing is measured but whether it is right."""

import re
from dataclasses import replace

import numpy as np
import pytest

from hpcmoe import launch, switches
from hpcmoe.bench import stream
from hpcmoe.bench import topology as bench
from hpcmoe.exchange.interface import until
from hpcmoe.files import topology
from hpcmoe.report import bench_topology
from hpcmoe.report.show import show

pytestmark = pytest.mark.mpi


@pytest.fixture
def world(comm, monkeypatch):
    """This world, as a job sees it; small messages, and few."""
    if comm.size < 2:
        pytest.skip("one rank has no links")
    for name, value in {"SMALLEST": 64, "LARGEST": 1024, "TRIPS": 3, "WARM": 1, "WINDOW": 0.0}.items():
        monkeypatch.setattr(bench, name, value)
    return launch.start()


def nodes_of(world, how: str) -> tuple[int, ...]:
    """The node of each rank: all on one, each alone, in twos that lie apart, or of different sizes."""
    R = world.size
    return {"one": (0,) * R, "each": tuple(range(R)), "apart": tuple(rank % max(R // 2, 1) for rank in range(R)),
            "uneven": launch.number([min(rank, 2) for rank in range(R)])}[how]


def unequal(world, network) -> list[str]:
    """What is not a network as it should be, or not the same on all ranks."""
    t, problems = network.topology, []
    own = np.eye(world.size, dtype=bool)
    if t.node.tolist() != list(world.nodes) or list(network.host) != list(world.hosts):
        problems.append(f"{t.node} on {network.host}")
    if (t.latency[own] != 0).any() or (t.rate[own] != np.inf).any():
        problems.append("a rank has a way to itself")
    if not all((np.isfinite(table[~own]) & (table[~own] > 0)).all() for table in (t.latency, t.rate)):
        problems.append(f"{t}")
    if not np.array_equal(t.latency, t.latency.T):
        problems.append("a way is longer than the way back")
    seen = world.comm.allgather((t.latency.tobytes(), t.rate.tobytes(), tuple(network.address)))
    return problems + ([] if len(set(seen)) == 1 else ["ranks disagree"])


@pytest.mark.many_ranks("apart-True", "uneven-False")
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("how", ["one", "each", "apart", "uneven"])
def test_all_links_are_measured(world, everywhere, monkeypatch, how, every):
    monkeypatch.setattr(bench, "EVERY", 10**6 if every else 0)
    world = replace(world, nodes=nodes_of(world, how))
    everywhere(unequal(world, bench.measure(world)))


@pytest.mark.many_ranks("uneven")
@pytest.mark.parametrize("how", ["one", "each", "apart", "uneven"])
def test_figures_are_those_of_their_pair_and_direction(world, everywhere, monkeypatch, how):
    """With planted ones; a rate is what those see to whom the bytes come."""
    R, me = world.size, world.rank
    far = 1e-6 * (1 + np.add.outer(np.arange(R), np.arange(R)))
    fast = 1e8 * (1 + np.arange(R * R).reshape(R, R))
    monkeypatch.setattr(bench.Gauge, "_trip", lambda self, peer, leads, *rest: far[me, peer] if leads else 0.0)
    monkeypatch.setattr(bench.Gauge, "_stream", lambda self, peer, *rest: fast[peer, me])
    world = replace(world, nodes=nodes_of(world, how))
    found = bench.measure(world).topology
    own = np.eye(R, dtype=bool)
    wrong = [name for name, got, want in (("latency", found.latency, far), ("rate", found.rate, fast))
             if not np.allclose(got[~own], want[~own], rtol=1e-12)]
    everywhere(wrong + unequal(world, bench.measure(world)))


def test_messages_grow_until_they_take_long_enough(world, everywhere, monkeypatch):
    """The same on all ranks, however fast each is."""
    sizes = []
    monkeypatch.setattr(bench.Gauge, "_stream", lambda self, peer, here, *rest: (
        sizes.append(here.nbytes), (1 + world.rank) * 1e6)[1])
    monkeypatch.setattr(bench, "ENOUGH", 200e-6)
    bench.Gauge(world.comm, world.idle, "host").rates([[(0, 1)]])
    wanted = [128, 512, 512] if world.rank < 2 else []
    everywhere([] if sizes == wanted else [f"sizes {sizes}, not {wanted}"])


def test_a_stream_brings_what_the_other_rank_sent(world, everywhere):
    """With neighbours, some of which send longer than others."""
    problems = []
    if (peer := world.rank ^ 1) < world.size:
        here, there = np.full(999, world.rank, np.uint16), [np.full(999, 77, np.uint16) for _ in range(3)]
        flow = stream.Stream(world.comm, peer, here, there, 0.01 * world.rank)
        until(flow.test, world.idle)
        problems = [] if all((into == peer).all() for into in there) else [f"{there}"]
        problems += [] if len(flow.arrivals) >= stream.LEAST and flow.rate() > 0 else [f"{flow.arrivals}"]
    everywhere(problems)


@pytest.mark.parametrize("per_node", [0, 2])
def test_the_verb_measures_writes_and_prints(world, shared_tmp, everywhere, capsys, monkeypatch, per_node):
    monkeypatch.setenv(switches.ADDRESS, f"top.leaf{world.rank // 4}.n{world.rank // 2}")
    monkeypatch.setenv(switches.PATTERN, "switch.switch.node")
    path = shared_tmp / f"topology-{per_node}.h5"
    bench_topology.run(world, per_node, path)
    said, problems = capsys.readouterr().out, []
    found = topology.read(path)
    problems = unequal(launch.with_nodes(world, per_node), found)
    if per_node and found.leaf.tolist() != [rank // 4 for rank in range(world.size)]:
        problems.append(f"leaf switches {found.leaf}")
    classes = {True: {"same node"}, False: {"same node", "other nodes"}}[not per_node or world.size == 2]
    if world.size > 4 and per_node:
        classes = {"same node", "same switch", "other switches"}
    show(path, 0)
    shown = capsys.readouterr().out
    if world.rank == 0 and not shown.endswith(said):
        problems.append(f"printed {said}, and then {shown}")
    if set(re.findall(r"^(same node|same switch|other switches|other nodes)", shown, re.M)) != classes:
        problems.append(shown)
    if world.rank and said:
        problems.append(f"said {said}")
    everywhere(problems)
