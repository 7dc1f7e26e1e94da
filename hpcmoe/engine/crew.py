"""The ranks that answer a job's prompts, from weights to committed answers; where some die, the others."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe import array, gpu, ulfm
from hpcmoe.config import Job
from hpcmoe.engine import compare, device, output
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.bias import Bias
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.fit import planned
from hpcmoe.engine.generate import Balance, Stop, Tally, Vote, generate
from hpcmoe.engine.groups import joined, open_pool, split
from hpcmoe.engine.loads import Loads
from hpcmoe.engine.memory import Memory, Sizes
from hpcmoe.engine.pool import Pool
from hpcmoe.engine.progress import open_progress
from hpcmoe.engine.record import Record
from hpcmoe.engine.replan import Replans
from hpcmoe.engine.start import Plan
from hpcmoe.engine.together import heads_of, split_of
from hpcmoe.engine.trace import Untraced
from hpcmoe.engine.ways import among, choose_turns, choose_way
from hpcmoe.exchange.watch import Watch
from hpcmoe.files import lock
from hpcmoe.files.lock import Held
from hpcmoe.files.parts import Provenance
from hpcmoe.kernels.rows import compute_alone
from hpcmoe.launch import World, on_root, shrink, together
from hpcmoe.model.heads import cut
from hpcmoe.model.weights import Swiglu, changed
from hpcmoe.notice import DEATH, Notice
from hpcmoe.placement.plan import inherit
from hpcmoe.slots import Placement, held_by, most, shard_of


@dataclass(frozen=True)
class Loss:
    """Ranks that died together, as far as anybody can tell."""

    before: World
    living: list[int]
    """ranks of `before`, ascending"""
    dead: list[int]
    """the others"""
    names: list[int]
    """what the dead were called at the beginning of the run"""
    begin: float
    """when it was heard of, by `time.monotonic`"""
    begun: int
    """prompts in slots of those that live"""


class Crew:
    """One rank's part in it. What belongs to the ranks' number is opened again for those that survive others."""

    def __init__(self, world: World, job: Job, plan: Plan, waiting: np.ndarray, sizes: Sizes,
                 memory: Memory, origin: Provenance, trace: Untraced, locked: ExitStack) -> None:
        """`waiting` are rows of the prompts; `locked` holds the lock, on rank 0. Collective. Raises `Agreed`."""
        self.whole, self.world = world, split(world, job.parallel.data)
        self._job, self._plan, self._waiting, self._locked = job, plan, waiting, locked
        self._sizes, self._memory, self._trace, self._placements = sizes, memory, trace, plan.placements
        self.held = plan.held
        self._model, spec, self._dtype = plan.inputs.model, plan.inputs.model.spec, array.DTYPES[job.compute.dtype]
        load = planned(memory)(device.load)  # all ranks come to its end, so what is wrong is told once
        self._split = split_of(self.world.comm, job.parallel.attention_tensor)
        self._cut = cut(spec, shard_of(plan.placements, self.world.rank), heads_of(self._split))
        self._held = together(world, lambda: load(self._model, held_by(plan.placements, self.world.rank),
                                                  self._dtype, world.memory, self._cut))
        compute_alone(job.compute.reproducible)
        self._way = choose_way(self.world, job, spec, plan.placements, plan.probe)
        self._turns = choose_turns(job, plan.probe)
        self._watch = self._new_watch()
        self._sequences = Sequences(spec, job, sizes.sequences, sizes.tokens)
        self._tally, self._names = Tally(len(waiting)), list(range(world.size))
        self._pool, self._between = open_pool(world, self.world, self._watch.attend, job.exchange.timeout,
                                              plan.inputs.prompts, waiting, plan.left.begun)
        self._record = Record(Path(job.output), plan.left.attempt, world.rank, origin, job.checkpoint.every,
                              (spec.layers, spec.experts, spec.moe.top_k if spec.moe else 0), plan.held.check,
                              job.balance.mode == "bias" and spec.moe is not None)
        lengths = plan.inputs.prompts.lengths[waiting]
        self._most = int(lengths.sum() if job.mode == "score" else len(lengths) * job.generate.max_new_tokens)
        """new tokens of all prompts together"""
        self._done: set[int] = set()
        self._left = list(plan.left.begun)
        """by ranks that died: rows of prompts that they answered, and answers that they began"""
        self._abandoned: list[tuple[RankSegments, Balance | None]] = []
        """of earlier worlds: MPI may still write to the buffers of exchanges that never ended"""
        self._open()

    def _new_watch(self) -> Watch:
        return Watch(self.world.comm, self._idle, self._job.exchange.timeout, self.world.hosts, self.whole.comm,
                     self.world.first)

    def _idle(self) -> None:
        self.world.idle()
        self._pool.attend()

    def _open(self, cache: Any = None) -> None:
        """What the steps need of this world, around the `cache` that an earlier one had."""
        self._vote = Vote(self.world.comm, self._watch)
        self._segments = together(self.whole, lambda: device.open_segments(
            self.world.comm, self._watch, self._model.spec, self._held, self._placements, self._sizes,
            self._job.generate, self._dtype, self._way, self._turns.most, overlapped=self._turns.overlapped,
            nodes=self.world.nodes, trace=self._trace, cache=cache, split=self._split))
        self._balance = self._new_balance()
        self._progress = open_progress(self.whole.rank, self._tally.prompts, self._most)

    def _new_balance(self) -> Balance | None:
        world, spec, given = self.world, self._model.spec, self._job.balance
        shape = spec.layers, spec.experts
        if not spec.moe or not (given.mode == "bias" or given.replan_every):
            return None
        loads = Loads(world.comm, self._watch, shape)
        if given.mode == "bias":
            return Bias(loads, shape, given.rate, self._segments.steer)
        mine, read = gpu.number() if world.memory == "device" else 0, planned(self._memory)(device.experts)
        return Replans(loads, given.replan_every, self._placements, world.rank, shape, self._change,
                       lambda layer, experts: read(self._model, layer, experts, self._dtype, world.memory, mine,
                                                    self._cut), world.label)

    def _change(self, layer: int, placement: Placement, slots: Mapping[int, Swiglu]) -> dict[int, Swiglu]:
        """A `replan.Change`."""
        before = {slot: self._held.layers[layer].experts[slot] for slot in slots}
        self._held = changed(self._held, layer, slots)
        self._placements = [*self._placements[:layer], placement, *self._placements[layer + 1:]]
        self._segments.change(layer, placement, self._held)
        return before

    def answer(self, notice: Notice) -> Stop | None:
        """Answers all prompts, and commits the answers; says why where not all. Collective. Raises `Agreed`."""
        self._trace.align(self.whole.comm, self._watch.idle)
        stop = self._steps(notice)
        if not stop and isinstance(self._balance, Bias):
            self._compare(self._balance)
        self._trace.align(self.whole.comm, self._watch.idle)
        self._progress.close()
        together(self.whole, lambda: self._record.commit(self._sequences.begun()))
        if not (stop and stop.reason == DEATH):  # else what they have goes with the process
            self._vote.free()
            self._segments.free()
            if self._balance:
                self._balance.free()
            if self._between:
                self._between.Free()
                self.world.comm.Free()
        self._watch.free()
        return stop

    def _compare(self, bias: Bias) -> None:
        """Scores some prompts with the bias as it is now, and without."""
        prompts, found = self._plan.inputs.prompts, []
        rows = compare.some(prompts, self._plan.inputs.rows)[self.world.group::self.world.groups]  # a bias each
        for value in (bias.value, np.zeros_like(bias.value)):
            self._segments.steer(value)
            found.append(compare.score(self._vote, self.world.rank, prompts, rows, self._job, self._sizes,
                                       self._segments, self._turns, self._tally.step))
        (tokens, biased), (_, plain) = found
        self._record.score(tokens, (biased, plain))

    def _steps(self, notice: Notice) -> Stop | None:
        """All steps, in spite of deaths where the job says so."""
        while True:
            stop, word = None, ulfm.WELL
            try:
                stop = generate(self._vote, self.world.rank, self._pool, self._sequences, self._segments, self._turns,
                                self._record, self._progress, notice, self._tally, self._balance)
                self._pool.leave(stop is not None)
            except Exception as error:
                if not ulfm.tells_of_death(error):
                    raise
                self.whole.comm.Revoke()
                word = ulfm.HEARD
            if not ulfm.on() or (verdict := ulfm.agree(self.whole.comm, word, self._job.exchange.timeout)) == ulfm.WELL:
                stop = stop and replace(stop, rank=self._names[self.world.first + stop.rank])
                return joined(self.whole, self.world, stop, len(self._tally.answered), len(self._waiting))
            if ulfm.ending(verdict):
                os._exit(ulfm.ending(verdict))
            loss = self._regroup()
            if self._job.checkpoint.on_failure != "shrink":
                return Stop(loss.names[0], DEATH, len(self._pool), loss.begun, self._tally.step)
            self._take_over(loss)

    def _regroup(self) -> Loss:
        """The world becomes that of those that live, and all that the others had goes back to the pool. Collective over
        them. Raises `Agreed`."""
        begin, before = time.monotonic(), self.whole
        self._segments.close()
        self._progress.close()
        if self._balance:
            self._balance.close()
        self._abandoned.append((self._segments, self._balance))
        self.world, living = shrink(before)
        self.whole = self.world
        dead = sorted(set(range(before.size)) - set(living))
        lost, self._names = [self._names[rank] for rank in dead], [self._names[rank] for rank in living]
        self._watch = self._new_watch()
        if 0 in dead:  # it had the lock
            held: Held = on_root(self.world, lambda: self._locked.enter_context(
                lock.taken(Path(self._job.output), self.held)))
            self.held, self._record.check = held, held.check
        done, begun = on_root(self.world, lambda: output.left_by(self._job, self._plan.left.attempt, lost,
                                                                 self._model.spec.vocabulary))
        moved = self._balance.taken if self._balance else 0
        all_ = self.world.comm.allgather((self._tally.step, moved, self._sequences.prompts, self._tally.answered))
        self._tally.step = max(step for step, *_ in all_)
        if self._balance:
            self._balance.undo(min(taken for _, taken, *_ in all_))
        self._done |= done
        self._left += begun
        kept = self._done.union(*(set(theirs).union(answered) for *_, theirs, answered in all_))
        self._pool = Pool(self._plan.inputs.prompts, [row for row in self._waiting if row not in kept], self._left)
        return Loss(before, living, dead, lost, begin, sum(len(theirs) for *_, theirs, _ in all_))

    def _take_over(self, loss: Loss) -> None:
        """The experts of the dead are read again by others. Collective. Raises `Agreed`."""
        before = self._placements
        self._placements = [inherit(placement, loss.living) for placement in before]

        def mine(layer: int) -> list[int]:
            kept = len(before[layer].held_by(loss.before.rank))
            return self._placements[layer].held_by(self.world.rank)[kept:]
        take_over, begin = planned(self._memory)(device.take_over), time.monotonic()
        self._held = together(self.world, lambda: take_over(self._held, self._model, mine, self._dtype,
                                                            self.world.memory))
        reading = time.monotonic() - begin
        self._way = among(self._way, self.world.nodes)
        self._open(self._abandoned[-1][0].cache)
        if self.world.rank == 0:
            dead = ", ".join(f"rank {name} (process {loss.before.pids[rank]} on {loss.before.hosts[rank]})"
                             for name, rank in zip(loss.names, loss.dead))
            print(f"hpcmoe: {dead} died; the other {self.world.size} read its experts again in {reading:.2f} s, and go "
                  f"on after {time.monotonic() - loss.begin:.2f} s; experts per rank and layer at most: "
                  f"{most(self._placements)}", file=sys.stderr, flush=True)
