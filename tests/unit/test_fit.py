"""What a rank's GPU must hold, and what becomes of a job that does not fit: without CuPy, MPI and GPUs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DENSE, MOE

from hpcmoe import array
from hpcmoe.config import Exchange, Job, Parallel, Schedule
from hpcmoe.device.scratch import LOGITS, TOGETHER, WORKERS, WORKSPACE
from hpcmoe.engine import fit, footprint
from hpcmoe.engine.footprint import GROWTH, OVERHEAD, Step
from hpcmoe.engine.memory import Sizes, plan_memory, plan_sizes
from hpcmoe.engine.seats import place
from hpcmoe.errors import DeviceError, JobError, size
from hpcmoe.exchange.route import plan_send, trailer_width
from hpcmoe.gpu import Gpu
from hpcmoe.kernels import rope
from hpcmoe.launch import Agreed
from hpcmoe.model import weights
from hpcmoe.placement.plan import linear
from hpcmoe.spec import Attention, Latent, Tensor

LENGTHS = np.array([7, 40, 3, 9, 12, 30, 8])
JOB = Job("m", "p", "o")
MODELS = [MOE, DENSE, replace(MOE, moe=replace(MOE.moe, experts=13, top_k=5, shared_hidden=24, shared_gate=True))]


def set_to(sequences: int = 0, tokens: int = 0, **more) -> Job:
    return replace(JOB, schedule=Schedule(max_sequences=sequences, max_tokens=tokens), **more)


def step(model=MOE, ranks: int = 4, tokens: int = 64, wanted: int = 8) -> Step:
    return Step(model, place(model, ranks), tokens, wanted)


def total(job: Job, model=MOE, ranks: int = 4) -> int:
    sizes = plan_sizes(model, job, LENGTHS, ranks)
    return plan_memory(model, job, place(model, ranks), sizes, "device").total


class TestFootprint:
    """Bytes against the shapes that the arrays have."""

    def test_the_cache(self):
        """Of 3 sequences of 300 tokens: 384 positions, in two chunks of keys."""
        a = MOE.attention
        keys = np.empty((MOE.layers, 3, a.kv_heads, 384, a.head_dim), np.uint16)
        angles = rope.tables(np.arange(384), a, array.BFLOAT16)
        parts = np.empty((3, a.heads, 2, a.head_dim + 2), np.float32)
        assert footprint.kv_cache(MOE, 3, 300) == sum(part.nbytes for part in (keys, keys, *angles, parts))

    @pytest.mark.parametrize("heads, at_once", [(128, 16), (16, 16), (30, 15), (1, 1)])
    def test_the_cache_of_a_latent(self, heads, at_once):
        """At DeepSeek-V3's size, 3 sequences of 16,384 tokens: a vector and a key, plain ones of some heads, and the
        parts of absorbed sums."""
        c = Latent(512, 64, 128)
        model = replace(MOE, attention=Attention(heads, heads, 128, latent=c))
        kept = np.empty((model.layers, 3, 16384, 576), np.uint16)
        angles = rope.tables(np.arange(16384), model.attention, array.BFLOAT16)
        plain, sums = (at_once * 16384 * (192 + 128)) * 2, 2 * WORKERS * TOGETHER * (512 + 2) * 4
        assert footprint.kv_cache(model, 3, 16384) == kept.nbytes + sum(part.nbytes for part in angles) + plain + sums
        narrow = replace(model, attention=replace(model.attention, latent=replace(c, rank=256)))
        assert footprint.kv_cache(narrow, 3, 16384) == kept.nbytes // 576 * 320 + angles[0].nbytes * 2 + plain

    def test_weights(self):
        """Vectors are float32; large matrices take whole pages."""
        assert footprint.tensor(Tensor("norm", (100,), "norm")) == 400
        assert footprint.tensor(Tensor("head", (100, 10), "head")) == 2000
        assert footprint.tensor(Tensor("head", (1 << 10, 512), "head")) == 1 << 20
        assert footprint.tensor(Tensor("head", (1 << 10, 513), "head")) == 2 << 20
        assert footprint.tensor(Tensor("head", (1 << 10, 1025), "head")) == 4 << 20

    @pytest.mark.parametrize("experts, ranks, top_k", [(16, 16, 2), (4, 1, 2), (32, 4, 8), (4, 8, 2), (5, 3, 5)])
    def test_buffers_hold_the_rows_of_balanced_routing(self, experts, ranks, top_k):
        model = replace(MOE, moe=replace(MOE.moe, experts=experts, top_k=top_k))
        T, placement = 8 * experts, linear(experts, ranks)
        expert = ((np.arange(T)[:, None] + np.arange(top_k) * (experts // top_k)) % experts).astype(np.int32)
        plan = plan_send(placement.slot[expert], placement, trailer_width(placement.most, top_k))
        fullest = int(np.diff(placement.first).argmax())
        arriving, computed = ranks * plan.counts[fullest], ranks * plan.home_counts[fullest]  # all ranks send alike
        found = step(model, ranks, T)
        assert found.computed >= computed
        units = model.hidden + plan.trailer.shape[1]
        needed = 2 * ((len(plan.token) + arriving) * units + (computed + T * top_k) * model.hidden)
        assert needed <= footprint.exchange(found) / GROWTH <= 2 * needed

    @pytest.mark.parametrize("ranks, computed", [(1, 128), (2, 128), (3, 192), (4, 128), (8, 256)])
    def test_rows_that_the_fullest_rank_computes(self, ranks, computed):
        """4 experts, 2 for each of a rank's 64 tokens: as many as it has answers, more where others hold fewer."""
        assert step(ranks=ranks).computed == computed

    def test_two_hops_have_buffers_of_their_own(self):
        """Both exchanges are there where `auto` may take either."""
        def exchange(mode: str, memory: str, **parallel) -> int:
            job = replace(JOB, exchange=Exchange(mode), parallel=Parallel(**parallel))
            return plan_memory(MOE, job, place(MOE, 4), Sizes(2, 8, 8), memory).exchange
        for memory in ("host", "device"):
            flat = exchange("alltoallv", memory)
            assert exchange("auto", memory) == flat and exchange("twohop", memory) == 2 * flat
            assert exchange("auto", memory, ranks_per_node=2) == 3 * flat

    def test_a_dense_model_exchanges_nothing(self):
        found = step(DENSE)
        assert found.computed == found.trailer == footprint.exchange(found) == 0

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
    def test_each_micro_batch_keeps_its_own(self, model):
        one, two, three = (footprint.workspace(step(model), parts) for parts in (1, 2, 3))
        assert two - one == three - two >= 2 * 2 * 64 * model.hidden and one > WORKSPACE + OVERHEAD

    def test_logits_are_bounded(self):
        few, many, more = (footprint.workspace(step(wanted=n), 1) for n in (8, LOGITS // 300, 2 * LOGITS // 300))
        assert many - few >= 2 * 0.99 * LOGITS and more - many < LOGITS / 4

    def test_scoring_wants_the_logits_of_all_tokens(self):
        sizes = Sizes(2, 500, 64)
        generate, score = (plan_memory(MOE, replace(JOB, mode=mode), place(MOE, 4), sizes, "device")
                           for mode in ("generate", "score"))
        assert score.workspace - generate.workspace >= 2 * 498 * MOE.vocabulary and score.cache == generate.cache


class TestPlan:
    """The sum."""

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
    def test_a_gpu_holds_all_but_staged_pieces(self, model):
        job = replace(JOB, exchange=Exchange(transport="staged"))
        found = plan_memory(model, job, place(model, 4), Sizes(4, 64, 64), "device")
        assert found.requests == 0 and bool(found.staged) == bool(model.moe)
        assert found.total == sum(found.weights.values()) + found.cache + found.exchange + found.workspace

    def test_rungs_lie_on_the_gpu_and_pieces_with_the_host(self):
        """By a probe, which may choose either, both count."""
        where, sizes = place(MOE, 4), Sizes(4, 64, 64)
        plain, probed = (plan_memory(MOE, replace(JOB, probe=probe), where, sizes, "device") for probe in ("", "p.h5"))
        assert plain.requests == probed.requests > 0 and plain.staged == 0 < probed.staged
        assert plain.total == probed.total
        on_host = plan_memory(MOE, replace(JOB, probe="p.h5"), where, sizes, "host")
        assert on_host.requests > 0 and on_host.staged == on_host.workspace == 0

    def test_a_cpus_weights_are_float32(self):
        held = weights.size(MOE, lambda layer: [0], lambda tensor: 4 * tensor.values)
        assert plan_memory(MOE, JOB, place(MOE, 4), Sizes(1, 1, 1), "host").weights == held

    def test_the_words_name_the_parts(self):
        found = plan_memory(MOE, JOB, place(MOE, 4), Sizes(4, 64, 64), "device")
        for word in ("weights ", " + keys and values ", " + exchange ", " + workspace ", f" = {size(found.total)}"):
            assert word in found.words()
        assert "workspace" not in plan_memory(MOE, JOB, place(MOE, 4), Sizes(4, 64, 64), "host").words()


class TestFit:
    """How many sequences."""

    @pytest.mark.parametrize("tokens", [0, 16])
    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
    def test_the_largest_batch_fits_and_no_larger_one(self, model, tokens):
        where, plans = place(model, 4), [total(set_to(n, tokens), model) for n in range(1, 14)]
        assert plans == sorted(plans)
        for n, limit in enumerate(plans, 1):
            found = fit.fit(model, set_to(13, tokens), LENGTHS, where, limit)
            assert found.most >= n and (found.most == n or plans[found.most - 1] == limit)
            assert fit.fit(model, set_to(13, tokens), LENGTHS, where, limit - 1).most < n

    def test_what_is_left_to_be_planned_is_as_much_as_fits(self):
        where = place(MOE, 1)
        wanted = plan_sizes(MOE, JOB, LENGTHS, 1)
        assert wanted.sequences == len(LENGTHS)
        for n in range(1, len(LENGTHS) + 1):
            found = fit.fit(MOE, JOB, LENGTHS, where, total(set_to(n), ranks=1))
            assert found.sizes == plan_sizes(MOE, set_to(n), LENGTHS, 1) and found.sizes.sequences == n
            assert found.memory.total <= total(set_to(n), ranks=1)
        assert fit.fit(MOE, JOB, LENGTHS, where, 1e12).sizes == wanted

    def test_what_is_asked_for_stays(self):
        limit = total(set_to(3))
        found = fit.fit(MOE, set_to(6), LENGTHS, place(MOE, 4), limit)
        assert (found.sizes.sequences, found.most) == (6, 3) and found.memory.total > limit

    def test_not_even_one(self):
        found = fit.fit(MOE, JOB, LENGTHS, place(MOE, 4), 1e6)
        assert found.most == 0 and found.memory.total > 1e6

    def test_advice(self):
        """The batch first; then what is too large."""
        memory = plan_memory(MOE, JOB, place(MOE, 4), Sizes(4, 64, 64), "device")
        held, experts, attention = sum(memory.weights.values()), memory.weights["experts"], memory.weights["attention"]
        assert fit.advice(memory, held, 5, 1) == "the largest batch that fits is schedule.max_sequences = 5"
        assert "not even one sequence fits" in fit.advice(memory, held, 0, 1)
        assert "more ranks hold fewer experts" in fit.advice(memory, held - experts / 2, 0, 2)
        assert "parallel.attention_tensor = 4 cuts" in fit.advice(memory, held - 0.7 * attention, 0, 1)
        few = replace(memory, weights=memory.weights | {"attention": 0})
        assert "parallel.expert_tensor = 2 cuts" in fit.advice(few, held - attention - experts / 2, 0, 1)
        both = fit.advice(memory, held - 0.9 * attention - 0.4 * experts, 0, 100)
        assert "attention_tensor = 4 cuts" in both and "more ranks hold fewer of the" in both
        assert "more ranks do not help" in fit.advice(memory, held - attention, 0, 1)


def world(free: list[int], shared: bool = False, rank: int = 0, gpus: bool = True) -> SimpleNamespace:
    """All ranks, as `plan_rank` sees them: `free` bytes on the GPU of each, that of two neighbours where `shared`."""
    ranks = range(len(free))
    share = 2 if shared else 1
    found = tuple(Gpu(f"0000:{n // share:02x}:00.0" if gpus else "") for n in ranks)
    comm = SimpleNamespace(allgather=lambda mine: [some // share for some in free])
    return SimpleNamespace(rank=rank, size=len(free), hosts=("node",) * len(free),
                           nodes=(0,) * len(free), gpus=found, comm=comm,
                           memory="device" if gpus else "host")


def plan_rank(ranks: SimpleNamespace, job: Job = JOB, free: int = 0):
    return fit.plan_rank(ranks, MOE, job, LENGTHS, place(MOE, ranks.size), lambda: free)


class TestRanks:
    """What the ranks agree on."""

    def test_the_gpu_with_the_least_decides(self, capsys):
        enough = total(set_to(2))
        everyone = [plan_rank(world([10**12, 10**12, total(set_to(1)), 10**12], rank=rank)) for rank in range(4)]
        assert [sizes for sizes, _ in everyone] == [plan_sizes(MOE, set_to(1), LENGTHS, 4)] * 4
        assert capsys.readouterr().err.count("sequences at once on each rank: 1,") == 1  # rank 0 says so
        sizes, memory = plan_rank(world([10**12] * 4))
        assert sizes == plan_sizes(MOE, JOB, LENGTHS, 4) and memory.total <= enough and not capsys.readouterr().err

    def test_it_is_refused_on_all_ranks(self):
        free = [10**12, total(set_to(3)), 10**12, 10**12]
        for rank in range(4):
            with pytest.raises(Agreed) as refused:
                plan_rank(world(free, rank=rank), set_to(6))
            line = str(refused.value)
            assert (refused.value.code, refused.value.mine) == (DeviceError.code, rank == 1) and "\n" not in line
            for word in ("rank 1 on node", "weights", "keys and values", "exchange", "workspace", size(free[1]),
                         size(total(set_to(6))), "schedule.max_sequences = 3"):
                assert word in line

    def test_ranks_share_what_a_gpu_has_free(self):
        enough = total(set_to(3))
        assert plan_rank(world([2 * enough] * 4, shared=True), set_to(3))[0].sequences == 3
        with pytest.raises(Agreed, match=r"free for each of the 2 ranks that share it; .*max_sequences = [12]$"):
            plan_rank(world([2 * enough - 2] * 4, shared=True), set_to(3))

    def test_a_rank_counts_its_part(self):
        told: list[int] = []
        ranks = world([10**12] * 4, shared=True)
        ranks.comm.allgather = lambda mine: told.append(mine) or [mine] * 4
        plan_rank(ranks, free=10**11)
        ranks.gpus, ranks.hosts = (Gpu("0"),) * 4, ("a", "b", "c", "d")  # equal addresses on other hosts
        plan_rank(ranks, free=10**11)
        assert told == [10**11 // 2, 10**11]

    def test_cpus_are_not_asked(self):
        ranks = world([0] * 4, gpus=False)
        sizes, memory = fit.plan_rank(ranks, MOE, JOB, LENGTHS, place(MOE, 4), None)
        assert sizes == plan_sizes(MOE, JOB, LENGTHS, 4)
        assert memory == plan_memory(MOE, JOB, place(MOE, 4), sizes, "host")


class CudaError(RuntimeError):
    """As CuPy's are."""

    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status: int) -> None:
        super().__init__("cudaErrorMemoryAllocation:\n out of memory")
        self.status = status


class TestFull:
    """Memory that is full after all."""

    @pytest.mark.parametrize("error", [MemoryError("Out of memory allocating 512 bytes."), CudaError(2)], ids=repr)
    def test_the_plan_is_told(self, error):
        memory = plan_memory(MOE, JOB, place(MOE, 4), Sizes(4, 64, 64), "device")
        with pytest.raises(DeviceError) as raised, fit.planned(memory):
            raise error
        line = str(raised.value)
        assert memory.words() in line and "ut of memory" in line and "\n" not in line and ".)" not in line

    @pytest.mark.parametrize("error", [CudaError(700), ValueError("x"), JobError("y"), KeyboardInterrupt()], ids=repr)
    def test_all_else_is_left_alone(self, error):
        memory = plan_memory(MOE, JOB, place(MOE, 4), Sizes(4, 64, 64), "device")
        with pytest.raises(type(error)) as raised, fit.planned(memory):
            raise error
        assert raised.value is error
