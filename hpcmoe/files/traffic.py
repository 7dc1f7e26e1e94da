"""The group `exchange/` of parts and results: what the exchanges took and moved.

    exchange/step/seconds, exposed [steps], bytes [steps, 3]; aligned with timings/
    exchange/layer/seconds, exposed [L], bytes [L, 3]
    exchange/class [3]: names of the classes of bytes

In parts they are one rank's. In results seconds are means over the ranks and bytes are those of all ranks, and there is
`hidden` [steps] and [L] beside them.
"""

from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5
from hpcmoe.traffic import CLASSES, Traffic

GROUP = "exchange"


def put(file: h5py.File, steps: Traffic, layers: Traffic, all_ranks: bool) -> None:
    """Writes the group; steps `[steps]`, layers `[L]`, of all ranks or of one."""
    mean, what = (", mean over the ranks", "all ranks") if all_ranks else ("", "this rank")
    for name, traffic in (("step", steps), ("layer", layers)):
        group = f"{GROUP}/{name}"
        h5.put(file, f"{group}/seconds", traffic.seconds, f"seconds in which rows were under way, by {name}{mean} [s]")
        h5.put(file, f"{group}/exposed", traffic.exposed,
               f"seconds of those in which nothing was computed, by {name}{mean} [s]")
        h5.put(file, f"{group}/bytes", traffic.bytes, f"bytes of rows that {what} sent, by {name} and class [B]")
        if all_ranks:
            h5.put(file, f"{group}/hidden", traffic.hidden,
                   f"part of the seconds that arithmetic hid, by {name}; NaN where there were none")
    h5.put_strings(file, f"{GROUP}/class", CLASSES, "names of the classes of bytes")


def take(file: h5py.File, name: str, n: int, path: Path) -> Traffic | None:
    """What is there by `name`, "step" or "layer", `[n]`; None in files of versions that did not count it.

    Raises `InputError`.
    """
    if GROUP not in file:
        return None
    seconds, exposed = (h5.take(file, f"{GROUP}/{name}/{which}", path, np.floating, 1)
                        for which in ("seconds", "exposed"))
    count = h5.take(file, f"{GROUP}/{name}/bytes", path, np.integer, 2)
    if not len(seconds) == len(exposed) == n or count.shape != (n, len(CLASSES)):
        raise InputError(f"{path}: the datasets in {GROUP}/{name} differ in length: make the file again")
    return Traffic(seconds, exposed, count)
