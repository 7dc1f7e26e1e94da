"""Ways to damage a file, drawn by a generator: HDF5 through h5py, any file by its bytes, text by its words."""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from numpy.random import Generator

EXTREMES = [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -2**63, 7, 255, 65536]
STEERING = "\x1b[2J\x1b]0;title\x07\u202e\r\x9b1m\u2028"
TYPES = ["i1", "u1", "i2", "u2", ">i4", "i8", "u8", "f2", "f4", "f8", "c8", "?", "S3", "S100000", "V7"]


def pick(rng: Generator, things):
    """One of them."""
    return things[int(rng.integers(len(things)))]


def datasets(file: h5py.File) -> list[str]:
    """The names of all."""
    names: list[str] = []
    file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
    return sorted(names)


def put(file: h5py.File, name: str, *args, **options) -> None:
    """Another dataset of that name."""
    del file[name]
    file.create_dataset(name, *args, **options)


def other_shape(rng: Generator, file: h5py.File, name: str) -> None:
    values = file[name][()]
    shapes = [(0,), (1,), (), (3, 3), (int(rng.integers(5000)),), (2, 0), (1,) * 32]
    put(file, name, data=np.resize(values, pick(rng, shapes)), dtype=file[name].dtype)


def other_type(rng: Generator, file: h5py.File, name: str) -> None:
    shape = file[name].shape
    kinds = [*map(np.dtype, TYPES), h5py.string_dtype(), h5py.vlen_dtype("i4"), h5py.ref_dtype,
             np.dtype([("a", "i4"), ("b", "f8")]), np.dtype(("i4", (2, 2))), h5py.enum_dtype({"a": 1}, "i4")]
    put(file, name, shape, dtype=pick(rng, kinds))


def other_values(rng: Generator, file: h5py.File, name: str) -> None:
    found = file[name]
    if h5py.check_string_dtype(found.dtype) is not None:
        words = [STEERING, "", b"\xff\xfe", "x" * 100000, "works", "scored", "persistent", "\n\n", "a" * 3]
        put(file, name, found.shape, dtype=h5py.string_dtype(), data=np.full(found.shape, pick(rng, words), object))
    elif found.size:
        values = found[()].reshape(-1)
        where = rng.integers(values.size, size=min(values.size, int(rng.integers(1, 4))))
        extremes = [np.nan, np.inf, -np.inf, 1e300, 0.0] if values.dtype.kind == "f" else EXTREMES
        with np.errstate(all="ignore"):
            values[where] = np.array(pick(rng, extremes)).astype(values.dtype)
        found[...] = values.reshape(found.shape)


def offsets(rng: Generator, file: h5py.File, name: str) -> None:
    """Of a ragged dataset, where there is one."""
    name = pick(rng, [n for n in datasets(file) if n.endswith("offsets")] or [name])
    other_values(rng, file, name)


def gone(rng: Generator, file: h5py.File, name: str) -> None:
    del file[pick(rng, [name, name.split("/")[0]])]


def group(rng: Generator, file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def link(rng: Generator, file: h5py.File, name: str) -> None:
    outside = pick(rng, ["/etc/passwd", "other.h5", "../other.h5", "/dev/zero", "nowhere.h5"])
    kinds = [h5py.SoftLink("/" + name), h5py.SoftLink("/nowhere"), h5py.SoftLink("/"), h5py.ExternalLink(outside, name),
             h5py.ExternalLink("other.h5", "/" + name), file["/"], file[pick(rng, datasets(file))]]
    del file[name]
    file[name] = pick(rng, kinds)


def cycle(rng: Generator, file: h5py.File, name: str) -> None:
    file["again"] = file["/"]
    file.create_group("/".join(["deep"] * int(rng.integers(2, 60))))


def many(rng: Generator, file: h5py.File, name: str) -> None:
    for number in range(int(rng.integers(3000))):
        file[f"many/{number}"] = h5py.SoftLink("/" + name) if number % 2 else file[name]


def external(rng: Generator, file: h5py.File, name: str) -> None:
    place = pick(rng, ["/etc/passwd", "other.h5", "/dev/zero", "nowhere"])
    put(file, name, (1000,), dtype="i4", external=[(place, 0, 4000)])


def virtual(rng: Generator, file: h5py.File, name: str) -> None:
    shape = file[name].shape or (4,)
    layout = h5py.VirtualLayout(shape, "i4")
    layout[...] = h5py.VirtualSource(pick(rng, ["other.h5", ".", "/etc/passwd", "nowhere.h5"]), name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def huge(rng: Generator, file: h5py.File, name: str) -> None:
    """Declared, and not there."""
    shape = pick(rng, [(10**15,), (2**62,), (10**6, 10**6), (2**40,), (10**9,), (10**8, 0), (1, 10**12)])
    options = pick(rng, [{"chunks": (1000,) * len(shape)}, {"chunks": (1000,) * len(shape), "compression": "gzip"}, {},
                         {"chunks": tuple(min(s, 10**7 if len(shape) == 1 else 10**3) for s in shape)}])
    if 0 in shape:
        options = {}
    put(file, name, shape, dtype=pick(rng, [file[name].dtype, np.dtype("i4"), h5py.string_dtype(), np.dtype("f4")]),
        **options)


@cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 1)


def bomb(rng: Generator, file: h5py.File, name: str) -> None:
    """Little on disk, much in memory: many chunks, or one that unpacks to more than it says."""
    count, chunk, packed = pick(rng, [(1000, 4 << 20, 4 << 20), (20, 1 << 20, 1 << 20), (1, 1 << 20, 256 << 20),
                                      (4, 1000, 64 << 20), (100, 1 << 16, 10)])
    put(file, name, (count * chunk // 4,), dtype="i4", chunks=(chunk // 4,), compression="gzip")
    for number in range(count):
        file[name].id.write_direct_chunk((number * chunk // 4,), _zeros(packed))


def packed(rng: Generator, file: h5py.File, name: str) -> None:
    """As a careful user might store it: all the same values."""
    values = file[name][()]
    if np.ndim(values) and np.size(values):
        options = pick(rng, [{"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}, {"shuffle": True},
                             {"maxshape": (None,) * values.ndim}, {"scaleoffset": 0}])
        if values.dtype.kind not in "iu":
            options.pop("scaleoffset", None)
        put(file, name, data=values, dtype=file[name].dtype, **options)


def attribute(rng: Generator, file: h5py.File, name: str) -> None:
    attributes = file.attrs if rng.random() < 0.8 else file[name].attrs
    key = pick(rng, [*sorted(attributes), "format", "spec"])
    values = [*EXTREMES[:8], np.nan, "", STEERING, "x" * 60000, b"\xff", np.zeros(1000), [1, 2], "a\nb", True,
              h5py.Empty("f"), np.array(["a", "b"], object), "hpcmoe-part", "[[" * 5000, "1" * 5000]
    if rng.random() < 0.2 and key in attributes:
        del attributes[key]
    elif isinstance(attributes.get(key), str) and rng.random() < 0.5:
        attributes[key] = words(rng, attributes[key].encode()).decode(errors="replace").replace("\0", "")[:60000]
    else:
        attributes[key] = pick(rng, values)


STRUCTURE: list[Callable[[Generator, h5py.File, str], None]] = [
    other_shape, other_type, other_values, offsets, gone, group, link, cycle, many, external, virtual, huge, bomb,
    packed, attribute, attribute]


def structure(rng: Generator, path: Path) -> str:
    """Changes an HDF5 file through the library; says how."""
    said = []
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 3))):
            found = datasets(file)
            if not found:
                break
            change, name = pick(rng, STRUCTURE), pick(rng, found)
            said.append(f"{change.__name__} {name}")
            try:
                change(rng, file, name)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError):
                said[-1] += " (refused by h5py)"
    return ", ".join(said)


def octets(rng: Generator, data: bytes) -> bytes:
    """Other bytes: flipped, set to extremes, cut off, moved, filled in."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = max(1, len(out))
        at = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 2048)))
        kind = int(rng.integers(8))
        if kind <= 1:
            for place in rng.integers(size, size=int(rng.integers(1, 32))):
                out[place:place + 1] = bytes([int(rng.integers(256))])
        elif kind == 2:
            out[at // 8 * 8:at // 8 * 8 + 8] = (pick(rng, EXTREMES) % 2**64).to_bytes(8, "little")
        elif kind == 3:
            out[at // 4 * 4:at // 4 * 4 + 4] = (pick(rng, EXTREMES) % 2**32).to_bytes(4, "little")
        elif kind == 4:
            out[at:at + 1] = bytes([out[at] ^ 1 << int(rng.integers(8))]) if out else b"\0"
        elif kind == 5:
            del out[at:at + int(rng.integers(1, 64)) if rng.random() < 0.5 else None]
        elif kind == 6:
            start = int(rng.integers(size))
            out[at:at + 64] = out[start:start + 64]
        else:
            out[at:at + 256] = bytes([int(rng.choice([0, 255]))]) * 256
    return bytes(out)


VALUES = [b"1" * 5000, b"9" * 300, b"-1", b"0", b"1e999", b"nan", b"inf", b'""', b"'" + STEERING.encode() + b"'", b"[]",
          b"[" * 3000, b"{" * 3000, b"true", b"1979-05-27", b"[1, 2]", b"{}", b'"/dev/zero"', b'"."',
          b'"/etc/passwd"', b"null", b'"../../x"',
          b'"\\u0000"', b'"a\\u001b[2Jb"', b"\xff\xfe", b"9223372036854775807", b"9223372036854775808",
          b"1000000000",
          b'"' + b"x" * 5000 + b'"', b"1000000", b"0.5", b'"\\ud800"', b"-0.0", b"100000"]


def words(rng: Generator, text: bytes) -> bytes:
    """Other lines and values."""
    lines = text.split(b"\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        kind = int(rng.integers(7))
        for between in (b"=", b":"):
            if kind < 3 and between in lines[at]:
                key, _, _ = lines[at].rpartition(between)
                end = b"," if between == b":" and lines[at + 1:at + 2] != [b"}"] else b""
                lines[at] = key + between + b" " + pick(rng, VALUES) + end
                break
        else:
            if kind == 3:
                lines.insert(at, pick(rng, lines))
            elif kind == 4:
                lines[at] = b'"' + STEERING[:3].encode() + b'x\\u001b\\n" = ' + pick(rng, VALUES)
            elif kind == 5:
                del lines[at:at + 1]
                lines = lines or [b""]
            else:
                lines[at] = octets(rng, lines[at])
    return b"\n".join(lines)
