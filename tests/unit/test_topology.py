"""Who is measured with whom, switches as Slurm tells of them, and what is kept of a measurement and shown."""

from dataclasses import replace
from itertools import combinations

import h5py
import numpy as np
import pytest
from helpers import assert_one_line, command, damage
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import launch, switches
from hpcmoe.bench import links, topology
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import topology as layout
from hpcmoe.files.topology import Network
from hpcmoe.slots import Topology

NODES = st.lists(st.integers(0, 4), min_size=1, max_size=14).map(launch.number)
"""`[R]`, numbered in the order of their first ranks"""


def disjoint(pairs) -> bool:
    met = [rank for pair in pairs for rank in pair]
    return len(met) == len(set(met))


def pairs_of(rounds) -> list[tuple[int, int]]:
    return sorted((min(pair), max(pair)) for pairs in rounds for pair in pairs)


@given(st.integers(1, 33))
def test_each_two_meet_once_in_a_tournament(count):
    rounds = links.tournament(count)
    assert pairs_of(rounds) == list(combinations(range(count), 2)) and all(map(disjoint, rounds))
    assert len(rounds) == (count - 1 + count % 2 if count > 1 else 1)


@given(NODES)
def test_all_pairs_inside_nodes_meet_once(node):
    rounds = links.inside(node)
    assert pairs_of(rounds) == [(a, b) for a, b in combinations(range(len(node)), 2) if node[a] == node[b]]
    assert all(map(disjoint, rounds)) and all(rounds)


@pytest.mark.parametrize("rounds_of", [links.alone, links.together])
@given(node=NODES)
def test_all_pairs_between_nodes_meet_once_and_two_nodes_have_no_other_traffic(rounds_of, node):
    rounds = rounds_of(node, every=True)
    assert pairs_of(rounds) == [(a, b) for a, b in combinations(range(len(node)), 2) if node[a] != node[b]]
    for pairs in rounds:
        busy = {tuple(sorted((node[a], node[b]))) for a, b in pairs}
        assert pairs and disjoint(pairs) and disjoint(busy)
        assert rounds_of is links.together or len(busy) == len(pairs)


@given(NODES)
def test_where_not_all_meet_each_two_nodes_do(node):
    nodes = list(combinations(range(max(node) + 1), 2))
    single, many = (rounds_of(node, every=False) for rounds_of in (links.alone, links.together))
    assert sorted(tuple(sorted((node[a], node[b]))) for pairs in single for a, b in pairs) == nodes
    sizes = [node.count(a) for a in range(max(node) + 1)]
    assert len(pairs_of(many)) == sum(min(sizes[a], sizes[b]) for a, b in nodes)
    assert set(pairs_of(single)) <= set(pairs_of(many)) and all(map(disjoint, many))
    assert len(single) == len(many) <= max(node) + 1


@settings(max_examples=30)
@given(NODES, st.integers(0, 2**32 - 1))
def test_what_was_not_measured_is_as_between_the_same_nodes(node, seed):
    """Against the obvious: the median over each pair's two nodes."""
    R, rng = len(node), np.random.default_rng(seed)
    found = rng.random((R, R))
    found[rng.random((R, R)) < 0.5] = np.nan
    np.fill_diagonal(found, 0)
    for pairs in [*links.inside(node), *links.alone(node, every=False)]:
        for a, b in pairs:
            found[a, b], found[b, a] = rng.random(2)
    whole = links.spread(node, found)
    for a in range(R):
        for b in range(R):
            known = [found[c, d] for c in range(R) for d in range(R) if (node[c], node[d]) == (node[a], node[b])]
            want = np.nanmedian(known) if np.isnan(found[a, b]) else found[a, b]
            assert whole[a, b] == want


TOLD = [("s0.s4.s8.tux1", "switch.switch.switch.node", ("s0", "s4", "s8")),
        ("top.leaf-16.n05", "switch.switch.node", ("top", "leaf-16")),
        (".core.tors-r1.gpu027", "switch.switch.switch.node", ("", "core", "tors-r1")),
        ("s[06,14-15].s13.cn-0256", "switch.switch.node", ("s[06,14-15]", "s13")),
        ("b8.tux1", "block.node", ("b8",)),
        ("t:1:0:2.tux1", "torus:x:y:z.node", ("t",)),
        ("tux1", "node", ()), ("tux1.site.org", "node", ()), ("s1.tux1.site.org", "switch.node", ("s1",)),
        ("", "", ()), ("s0.tux1", "", ()), ("", "switch.node", ()), ("tux1", "switch.node", ()),
        ("s0.", "switch.node", ()), ("s0.tux1", "switch.switch", ()), ("..tux1", "switch.switch.node", ()),
        ("...", "...", ()), ("é\n.x", "a.node", ("é\n",))]


@pytest.mark.parametrize("address, pattern, above", TOLD)
def test_switches_are_read_from_what_slurm_tells(address, pattern, above, monkeypatch):
    assert switches.above(address, pattern) == above
    monkeypatch.setenv(switches.ADDRESS, address)
    monkeypatch.setenv(switches.PATTERN, pattern)
    assert switches.told() == (address, pattern)


def test_what_is_no_text_tells_nothing(monkeypatch):
    monkeypatch.setenv(switches.ADDRESS, b"s0.\xff".decode(errors="surrogateescape"))
    monkeypatch.delenv(switches.PATTERN, raising=False)
    assert switches.told() == ("s0.?", "") and switches.above(*switches.told()) == ()


def test_ranks_are_told_apart_by_node_and_leaf_switch():
    above = [("s0", "s2"), ("s0", "s2"), ("s0", "s1"), ("s0", "s2"), ("s0", "s9"), (), ()]
    node = np.array([0, 0, 1, 2, 2, 3, 4])
    leaf = switches.leaves(above, node.tolist())
    assert leaf.tolist() == [0, 0, 1, 0, 0, 2, 2]  # the fifth is on the fourth's node
    found = switches.links(node, leaf)
    assert found.diagonal().tolist() == [0] * 7 and (found == found.T).all()
    assert [switches.LINKS[kind] for kind in found[0, 1:]] == ["same node", "other switches", "same switch",
                                                              "same switch", "other switches", "other switches"]


def network(nodes=(0, 0, 1, 2), leaf="aabc") -> Network:
    """Four ranks whose figures tell whence and whither."""
    R = len(nodes)
    latency = 1e-6 * (1 + np.arange(R * R, dtype=float).reshape(R, R))
    rate = 1e9 * (1 + np.arange(R * R, dtype=float).reshape(R, R))
    np.fill_diagonal(latency, 0)
    np.fill_diagonal(rate, np.inf)
    return Network(Topology(np.array(nodes, np.int32), latency, rate), [f"n{n}" for n in nodes],
                   [f"top.{s}.n{n}" for s, n in zip(leaf, nodes)], ["switch.switch.node"] * R, "an MPI")


def same(a: Network, b: Network) -> bool:
    arrays = all(np.array_equal(getattr(a.topology, name), getattr(b.topology, name))
                 for name in ("node", "latency", "rate"))
    return arrays and replace(a, topology=b.topology) == b


def test_the_file_gives_the_network_back(tmp_path):
    layout.write(tmp_path / "t.h5", network())
    found = layout.read(tmp_path / "t.h5")
    assert same(found, network()) and found.leaf.tolist() == [0, 0, 1, 2]


def put(name, data):
    def change(file):
        del file[name]
        file[name] = data
    return change


def entry(name, place, value):
    def change(file):
        file[name][place] = value
    return change


BAD = {
    "a node that is left out": entry("node", 3, 3), "another order": entry("node", 0, 1), "no ranks": put("node", []),
    "fewer ranks": put("node", [0, 0, 1]), "millions of ranks": put("node", np.zeros(5 << 20, np.int8)),
    "nodes that are no numbers": put("node", [0.0, 0.0, 1.0, 2.0]),
    "not square": put("latency", np.ones((4, 3))), "a vector": put("rate", np.ones(16)),
    "other ranks": put("rate", np.ones((5, 5))), "no latency": entry("latency", (0, 1), 0.0),
    "negative": entry("latency", (0, 1), -1e-6), "not a number": entry("latency", (2, 1), np.nan),
    "endless": entry("latency", (2, 1), np.inf), "infinitely fast": entry("rate", (0, 3), np.inf),
    "standing still": entry("rate", (0, 3), 0.0), "beyond belief": entry("rate", (0, 3), 1e300),
    "a diagonal of times": entry("latency", (1, 1), 1e-6), "a diagonal of rates": entry("rate", (1, 1), 1e9),
    "fewer hosts": put("host", np.array(["n0"], object)), "no addresses": lambda file: file.__delitem__("address"),
    "patterns that are numbers": put("pattern", [1, 2, 3, 4]),
    "a memory that there is not": lambda file: file.attrs.__setitem__("memory", "paper"),
    "no library": lambda file: file.attrs.__delitem__("library"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_does_not_fit_is_refused(what, tmp_path):
    layout.write(tmp_path / "t.h5", network())
    damage(tmp_path / "t.h5", BAD[what])
    with pytest.raises(InputError, match=r"t\.h5"):
        layout.read(tmp_path / "t.h5")


def rows(page: str) -> dict[str, list[str]]:
    """The table of a page, by its first column."""
    return {line[:14].strip(): line[14:].split() for line in page.splitlines() if line.startswith(("same", "other"))}


def test_show_tells_of_each_class_and_of_the_worst_links(capsys, monkeypatch, tmp_path):
    layout.write(tmp_path / "t.h5", network())
    result = command(capsys, monkeypatch, "show", tmp_path / "t.h5")
    assert result.code == 0 and "topology, made by" in result.out and "4 ranks on 3 nodes of 3 hosts" in result.out
    assert rows(result.out) == {"same node": ["2", "3.50", "2.00", "5.00", "3.50", "2.00", "5.00"],
                    "other switches": ["10", "9.50", "3.00", "15.0", "9.50", "3.00", "15.0"]}
    assert "Longest latency: rank 3 on n2 to rank 2 on n1, 15.0 µs, 15.0 GB/s" in result.out
    assert "Lowest rate:     rank 0 on n0 to rank 1 on n0, 2.00 µs, 2.00 GB/s" in result.out


@pytest.mark.parametrize("leaf, classes", [("aaaa", {"same node", "other nodes"}), ("aaab", {"same node", "same switch",
                                                                                            "other switches"})])
def test_nodes_are_told_apart_by_switches_where_these_are_known(leaf, classes, capsys, monkeypatch, tmp_path):
    layout.write(tmp_path / "t.h5", network(leaf=leaf))
    assert rows(command(capsys, monkeypatch, "show", tmp_path / "t.h5").out).keys() == classes


def test_one_rank_has_no_links(capsys, monkeypatch, tmp_path):
    layout.write(tmp_path / "t.h5", network((0,), "a"))
    assert "1 rank on 1 node" in command(capsys, monkeypatch, "show", tmp_path / "t.h5").out
    with pytest.raises(JobError, match="two ranks or more"):
        topology.check(1)


def test_a_damaged_file_is_one_line(capsys, monkeypatch, tmp_path):
    layout.write(tmp_path / "t.h5", network())
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["latency"][0, 1] = np.nan
    assert_one_line(command(capsys, monkeypatch, "show", tmp_path / "t.h5"), 3, "latency has values", "make the file")
