"""The results of a job array's shards, put together as those of the whole job."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import tomli_w

from hpcmoe import paths, shard, tables
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import bias, h5, parts, results, routing, vet
from hpcmoe.files.parts import Provenance
from hpcmoe.files.results import Results, StepTable
from hpcmoe.shard import Shard
from hpcmoe.traffic import Traffic


@dataclass(frozen=True)
class Piece:
    """The results of one shard."""

    path: Path
    shard: Shard
    origin: Provenance
    """as the whole job would have it"""
    found: Results


def pack(sources: Sequence[Path], output: Path, overwrite: bool) -> bool:
    """Writes what the shards in `sources` hold as the results of the whole job, in the order of its prompts.

    Returns whether there was anything to do.

    Raises `InputError` where a source is none, or damaged; `JobError` where sources are of different jobs, or one shard
    is there twice or not at all, or `output` belongs to another job or cannot be written.
    """
    paths.check_output(output, *sources)
    pieces = sorted((read(path) for path in sources), key=lambda piece: piece.shard.number)
    check_job(pieces)
    check_whole(pieces)
    if output.exists() and not results.could_be(output):
        raise JobError(f"output {output} is there and not a results file: give another output")
    if not overwrite and results.is_finished(output, pieces[0].origin.identity):
        return False
    results.write(output, _origin(pieces, output), _joined(pieces), shards=len(pieces))
    return True


def read(path: Path) -> Piece:
    """The results of a shard. Raises `InputError`, and `JobError` where they are those of a whole job."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        job, identity, versions = (h5.attribute(file, name, path, str) for name in ("job", "identity", "versions"))
        (ranks, groups), most = parts.groups(file, path), h5.attribute(file, "experts_per_rank", path, int)
        whole, words = shard.split(identity)
        if not words:
            raise JobError(f"{path} holds the results of a whole job, not those of a shard: it is packed already")
        origin = Provenance(job, whole, versions, ranks, tuple(h5.strings(file, "host", path)), most,
                            groups)
        return Piece(path, shard.parse(words), origin, results.read(file, path))


def check_job(pieces: Sequence[Piece]) -> None:
    """Raises `JobError` where not all are shards of one job."""
    first = pieces[0]
    for piece in pieces[1:]:
        if piece.origin.identity != first.origin.identity:
            lines = (one.origin.identity.splitlines() for one in (piece, first))
            mine, other = next(pair for pair in zip_longest(*lines, fillvalue="nothing") if pair[0] != pair[1])
            raise JobError(f"{piece.path} belongs to another job than {first.path}: {mine.removeprefix('# ')} in it, "
                           f"{other.removeprefix('# ')} in the other")
        if piece.shard.count != first.shard.count:
            raise JobError(f"{piece.path} is shard {piece.shard}, {first.path} is shard {first.shard}: all must be of "
                           "one array")


def check_whole(pieces: Sequence[Piece]) -> None:
    """Raises where a shard is there twice, or is not there, or does not hold its prompts."""
    for one, another in pairwise(pieces):
        if one.shard == another.shard:
            raise JobError(f"{one.path} and {another.path} are both shard {one.shard}: give each shard once")
    count, there = pieces[0].shard.count, {piece.shard.number for piece in pieces}
    missing = [_missing(pieces[0], number) for number in range(count) if number not in there]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise JobError(f"{len(missing)} of {count} shards are missing: {', '.join(missing[:8])}{more}: run them, then "
                       "pack again")
    prompts = sum(len(piece.found.answers) for piece in pieces)
    for piece in pieces:
        if [a.prompt for a in piece.found.answers] != piece.shard.rows(prompts).tolist():
            raise InputError(f"{piece.path} does not hold the prompts of shard {piece.shard}, or another one does not: "
                             "make them again")


def _missing(first: Piece, number: int) -> str:
    """How a person finds what is missing: its number, and what there is of it beside the others."""
    path = first.path.with_name(first.path.name.replace(first.shard.suffix, Shard(number, first.shard.count).suffix))
    if path == first.path:  # named otherwise
        return str(number)
    if path.exists():
        return f"{number} ({path} is there but was not given)"
    begun = len(parts.files(path))
    return f"{number} (unfinished: {parts.folder(path)} has {begun} commits)" if begun else str(number)


def _origin(pieces: Sequence[Piece], output: Path) -> Provenance:
    first = pieces[0]
    try:
        job = tables.parse(first.origin.job) | {"shard": "", "output": str(output.absolute())}
    except tables.Bad as bad:
        raise InputError(f"{first.path}: attribute job is {bad}: make the file again") from None
    versions = dict.fromkeys(piece.origin.versions for piece in pieces)
    hosts = tuple(host for piece in pieces for host in piece.origin.hosts)
    return Provenance(tomli_w.dumps(job), first.origin.identity, "; ".join(versions),
                      sum(piece.origin.ranks for piece in pieces), hosts,
                      max(piece.origin.experts_per_rank for piece in pieces), _groups(pieces) or 1)


def _groups(pieces: Sequence[Piece]) -> int:
    """The groups of ranks of each; 0 where they differ."""
    found = {piece.origin.groups for piece in pieces}
    return found.pop() if len(found) == 1 else 0


def _joined(pieces: Sequence[Piece]) -> Results:
    found = [piece.found for piece in pieces]
    if len({one.load.shape for one in found}) > 1:
        raise InputError(f"{pieces[0].path} and the others differ in layers or experts: make them again")
    rows = sorted((row for one in found for row in zip(one.answers, one.ids, one.texts)),
                  key=lambda row: row[0].prompt)
    answers, ids, texts = zip(*rows)
    layers = sum((one.layers for one in found), Traffic.none(len(found[0].load)))
    return Results(answers, ids, texts, np.sum([one.load for one in found], axis=0), _one_after_another(found), layers,
                   routing.join([one.routing for one in found]) if _groups(pieces) else None,
                   bias.add([one.bias for one in found]))


def _one_after_another(found: Sequence[Results]) -> StepTable:
    """The steps of all shards; starts of a later one count as later attempts."""
    tables, before = [one.steps for one in found], 0
    attempts = []
    for table in tables:
        attempts.append(table.attempt + before)
        before = int(attempts[-1].max(initial=before - 1)) + 1
    columns = {f.name: np.concatenate([getattr(table, f.name) for table in tables])
               for f in fields(StepTable) if f.name not in ("attempt", "traffic")}
    moved = Traffic(*(np.concatenate([getattr(table.traffic, f.name) for table in tables]) for f in fields(Traffic)))
    return StepTable(attempt=np.concatenate(attempts), traffic=moved, **columns)
