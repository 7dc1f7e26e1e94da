"""What a GPU, its links and a rank's main thread are taken to do, from TOML files."""

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

from hpcmoe import tables
from hpcmoe.errors import JobError
from hpcmoe.tables import Bad, key

FOLDER = Path(__file__).parent / "hardware"
"""The files that come with the program."""


@dataclass(frozen=True)
class Products:
    """Products of rows with a matrix, as they were measured: each matrix came from memory, not from a cache."""

    rows: tuple[int, ...] = key(help="how many rows, in ascending order")
    values: tuple[int, ...] = key(help="values of the matrix, in ascending order")
    seconds: tuple[float, ...] = key(help="of each number of rows with each matrix, those of the same rows together")


@dataclass(frozen=True)
class Device:
    """What computes. What is reached of both rates is a share, the same for all stages."""

    flops: float = key(help="FLOP/s at most, in the dtype of the weights", least=1)
    rate: float = key(help="bytes/s of its memory at most", least=1)
    memory: float = key(help="bytes of its memory that a rank may take", least=1)
    flops_share: float = key(1.0, help="part of its FLOP/s that products reach", least=1e-3, most=1)
    rate_share: float = key(1.0, help="part of its bytes/s that kernels reach", least=1e-3, most=1)
    weight: int = key(2, help="bytes of a weight as it is kept", least=2, most=4)
    value: int = key(2, help="bytes of a value of a row", least=2, most=4)
    in_turns: float = key(1.0, help="times as long as arithmetic takes while micro-batches take turns", least=1)
    shared_by: int = key(1, help="ranks that share it: products, and what is reached of both rates, are those of all "
                                 "at once, and a rank that is alone on it has all", least=1)
    products: Products | None = key(None, help="seconds of products where they were measured; without it products "
                                               "take what both rates say")


@dataclass(frozen=True)
class Links:
    """What lies between ranks. A rank has a link of its own to its node, and one out of it; each works both ways."""

    ranks_per_node: int = key(help="GPUs of a node", least=1)
    near_rate: float = key(help="bytes/s of a rank inside its node, each way", least=1)
    far_rate: float = key(help="bytes/s of a rank to and from other nodes, each way", least=1)
    near_latency: float = key(0.0, help="seconds until the first byte of a message is there, inside a node", least=0)
    far_latency: float = key(0.0, help="and between nodes", least=0)
    start: float = key(0.0, help="seconds that an exchange takes beside latency, messages and bytes", least=0)
    message: float = key(0.0, help="seconds of each message to a peer that has rows, by exact counts", least=0)
    request: float = key(0.0, help="seconds of each message of a persistent request", least=0)


@dataclass(frozen=True)
class Overhead:
    """Seconds that a stage takes beside its bytes and FLOPs, each time: launches, and what is not in the formulas."""

    attention: float = key(0.0, help="of attention, or of a dense block, in a layer", least=0)
    span: float = key(0.0, help="of each sequence in an attention, where they are computed one by one", least=0)
    score: float = key(0.0, help="of each query and key of a head, where scores are written to memory", least=0)
    gate: float = key(0.0, help="of a gate", least=0)
    pack: float = key(0.0, help="of packing rows, or of ordering those that came", least=0)
    expert: float = key(0.0, help="of each expert that has rows", least=0)
    combine: float = key(0.0, help="of summing answers", least=0)
    head: float = key(0.0, help="of the head and the choice of tokens", least=0)
    host: float = key(0.0, help="of the main thread for each piece of work that it begins", least=0)
    exchange: float = key(0.0, help="of the main thread for each exchange of rows that it starts", least=0)
    step: float = key(0.0, help="of the main thread between two steps", least=0)
    turn: float = key(0.0, help="of each piece of work while micro-batches take turns: a CPU's main thread looks after "
                                "exchanges on the same cores", least=0)


@dataclass(frozen=True)
class Launch:
    """Seconds of the main thread until a GPU's stream has been given a stage, which runs behind it: the longer of both
    counts. What recurs is a graph, and takes `Overhead.host` only."""

    begin: float = key(0.0, help="of a micro-batch: its tokens, and what came of it", least=0)
    attention: float = key(0.0, help="of attention, or of a dense block, in a layer", least=0)
    span: float = key(0.0, help="of each sequence in an attention that has more than a few tokens", least=0)
    gate: float = key(0.0, help="of a gate", least=0)
    pack: float = key(0.0, help="of packing rows", least=0)
    expert: float = key(0.0, help="of each expert that has rows", least=0)
    order: float = key(0.0, help="of ordering rows that came, where a rank has several experts", least=0)
    combine: float = key(0.0, help="of summing answers", least=0)
    head: float = key(0.0, help="of the head and the choice of tokens", least=0)


@dataclass(frozen=True)
class Hardware:
    """All that a prediction takes of a machine."""

    name: str = key(help="what to call it")
    device: Device = key(help="what computes")
    links: Links = key(help="what lies between ranks")
    overhead: Overhead = key(Overhead(), help="what a stage takes beside its work")
    launch: Launch = key(Launch(), help="what giving work to a GPU takes")

    @property
    def on_gpu(self) -> bool:
        """Whether ranks compute on GPUs: CPUs keep weights in float32."""
        return self.device.weight == 2


def known() -> list[str]:
    """Names of the files that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(words: str) -> Hardware:
    """The hardware of that name, or in the TOML file at that path. Raises `JobError`."""
    path = FOLDER / f"{words}.toml" if words in known() else Path(words)
    if path.suffix != ".toml":
        raise JobError(f"--hardware {words}: there is none of that name: take one of {', '.join(known())}, or a TOML "
                       "file, as hpcmoe bench machine writes it")
    try:
        found: Hardware = tables.build(Hardware, tables.read(path, JobError, "hardware file"))
        _check(found.device)
    except Bad as bad:
        raise JobError(f"{path}: {bad}") from None
    return found


def _check(device: Device) -> None:
    """Raises `Bad` where measured products are not a table, or beat what the device can do at most."""
    if (table := device.products) is None:
        return
    for name, side in (("rows", table.rows), ("values", table.values)):
        if not side or side[0] < 1 or any(a >= b for a, b in pairwise(side)):
            raise Bad(f"device.products.{name}", "should be whole numbers above 0 in ascending order")
    wanted = len(table.rows) * len(table.values)
    if len(table.seconds) != wanted or not all(0 < one < inf for one in table.seconds):
        raise Bad("device.products.seconds", f"should be {wanted} numbers above 0, {len(table.rows)} rows times "
                                             f"{len(table.values)} matrices, not {len(table.seconds)}")
    sizes = ((rows, values) for rows in table.rows for values in table.values)
    for (rows, values), seconds in zip(sizes, table.seconds):
        least = max(device.weight * values / device.rate, 2 * rows * values / device.flops)
        if seconds < least * (1 - 1e-6):
            raise Bad("device.products.seconds", f"{seconds:g} of {rows} rows and {values} values is less than rate "
                                                 f"and flops let them take, {least:.3g}")
