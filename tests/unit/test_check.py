"""`hpcmoe check`: what is wrong with a job is found before the queue, without MPI and without a GPU."""

import re
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import (
    DENSE,
    MOE,
    ROOT,
    SEED61,
    answer,
    assert_one_line,
    command,
    job_files,
    jsonl,
    model_file,
    origin,
    spec_file,
)

from hpcmoe import config, spec_table
from hpcmoe.config import Exchange, Job, Schedule
from hpcmoe.engine import inputs
from hpcmoe.engine.memory import Sizes, plan_memory
from hpcmoe.engine.seats import place
from hpcmoe.files import parts, prompts, results
from hpcmoe.files.parts import Part
from hpcmoe.report.check import parse_size


@pytest.fixture
def check(capsys, monkeypatch):
    """`check` with words -> Result."""
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *words: command(capsys, monkeypatch, "check", *words)


@pytest.fixture
def seed61(tmp_path):
    path = tmp_path / "seed61.toml"
    path.write_text(SEED61)
    return path


def finish(job, identity: str | None = None, pack: bool = True) -> None:
    """Leaves the output of a run of `job`, of another identity where one is given."""
    loaded = config.load(job)
    found = inputs.read(loaded)
    name = identity or found.identity(loaded)
    output = job.parent / "out.h5"
    answers = tuple(answer(n, 1) for n in range(len(found.prompts)))
    parts.write(output, 0, 0, 0, Part(answers if pack else answers[:1], np.ones((3, 4), np.int64), ()), origin(name))
    if pack:
        results.pack(output, found.prompts, origin(name), lambda tokens: "")


class TestRight:
    """Nothing is wrong."""

    def test_a_right_job_is_described(self, check, tmp_path):
        result = check(job_files(tmp_path, 3, 7, 5))
        assert (result.code, result.err) == (0, "")
        for word in ("nothing wrong", "tiny-moe", "3 to 7 tokens", "not there yet", "total"):
            assert word in result.out

    def test_it_changes_nothing(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        before = {p: p.read_bytes() for p in tmp_path.rglob("*")}
        check(job)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before

    def test_a_dense_model(self, check, tmp_path):
        result = check(job_files(tmp_path, 3, model_spec=DENSE), "--ranks", 4)
        assert result.code == 0 and "dense" in result.out

    def test_drawn_weights(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        result = check(job, "--set", f"model={spec_file(tmp_path / 's.toml', replace(MOE, name='drawn one'))}")
        assert result.code == 0 and "drawn one" in result.out

    @pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 16, 1000])
    def test_any_number_of_ranks(self, ranks, check, tmp_path):
        result = check(job_files(tmp_path, 3, 7), "--ranks", ranks)
        assert result.code == 0 and re.search(rf"\b{ranks}\b", result.out)

    def test_overrides_count(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        small, large = (check(job, "--set", f"schedule.max_sequences={n}").out for n in (1, 30))
        assert small != large

    def test_an_unfinished_output_is_said(self, check, tmp_path):
        job = job_files(tmp_path, 3, 7)
        finish(job, pack=False)
        result = check(job)
        assert result.code == 0 and "unfinished" in result.out and re.search(r"\b1 prompt", result.out)

    def test_a_finished_output_is_said(self, check, tmp_path):
        job = job_files(tmp_path, 3, 7)
        finish(job)
        assert "finished" in check(job).out and check(job).code == 0

    def test_neither_mpi_nor_a_gpu_is_needed(self, tmp_path):
        code = (
            "import sys; sys.modules['mpi4py'] = sys.modules['cupy'] = None\nfrom hpcmoe.__main__ import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "check", job_files(tmp_path, 3)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_markup_in_names_is_text(self, check, tmp_path):
        result = check(job_files(tmp_path, 3, model_spec=replace(MOE, name="v2 [/chat]")))
        assert result.code == 0 and "v2 [/chat]" in result.out


class TestMemory:
    """Whether GPUs hold it."""

    @pytest.mark.parametrize("size", ["80GB", "80 GB", "79GiB", "0.08TB", "80000MB", "80000000000", "141GB"])
    def test_cards_that_hold_the_seed(self, size, check, seed61):
        result = check(seed61, "--ranks", 16, "--gpu-memory", size)
        assert (result.code, result.err) == (0, "") and "GB" in result.out

    @pytest.mark.parametrize("size", ["64GB", "24GB", "59GiB", "1kB", "0GB"])
    def test_cards_that_do_not_hold_the_seed(self, size, check, seed61):
        result = check(seed61, "--ranks", 16, "--gpu-memory", size)
        assert result.code == 2 and f"GPUs of {size} do not hold it" in result.err and result.err.count("\n") == 1

    @pytest.mark.parametrize("ranks, experts", [(16, 5.1), (8, 10.2), (4, 20.4), (1, 81.7), (64, 5.1)])
    def test_experts_of_a_rank_fall_with_the_ranks(self, ranks, experts, check, seed61):
        out = check(seed61, "--ranks", ranks, "--gpu-memory", "900GB").out
        assert re.search(rf"experts +{experts} GB", out)

    def test_the_parts_are_those_of_the_design(self, check, seed61):
        out = check(seed61, "--ranks", 16, "--gpu-memory", "80GB").out
        assert re.search(r"attention +57\.3 GB", out)

    @pytest.mark.parametrize("exchange, schedule, mebibytes", [
        ({}, {}, 512), ({}, {"mode": "serial", "micro_batches": 1}, 256), ({"mode": "alltoallv"}, {}, 0),
        ({"transport": "staged"}, {}, 1536), ({"transport": "staged", "mode": "alltoallv"}, {}, 512)])
    def test_persistent_requests_and_staged_pieces_count(self, exchange, schedule, mebibytes):
        """At most a ladder of 128 MiB for each of two directions and micro-batches; pieces of up to 32 MiB."""
        job = Job("m", "p", "o", exchange=Exchange(**exchange), schedule=Schedule(**schedule))
        model = replace(MOE, hidden=4096)
        memory = plan_memory(model, job, place(model, 4), Sizes(1, 8192, 64), "host")
        assert memory.requests == mebibytes << 20
        assert memory.total - memory.requests == sum(memory.weights.values()) + memory.cache + memory.exchange

    def test_persistent_requests_are_said(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        exact = check(job, "--ranks", 4, "--set", "exchange.mode=alltoallv")
        assert "at most" in check(job, "--ranks", 4).out and "at most" not in exact.out

    def test_a_gpus_workspace_is_shown_and_staged_pieces_apart(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        host = check(job, "--ranks", 4).out
        gpu = check(job, "--ranks", 4, "--gpu-memory", "80GB", "--set", "exchange.transport=staged").out
        assert "workspace of" in gpu and "workspace of" not in host
        assert gpu.index("total") < gpu.index("in the host's memory: staged pieces")

    @pytest.mark.parametrize("size", ["80GB", "141GB"])
    def test_a_spec_alone_says_how_many_sequences_fit(self, size, check, seed61):
        """No more of them do, and a smaller card holds fewer."""
        found, = re.findall(r"It fits: .*the largest batch that does is (\d+) sequences of 1024 tokens",
                            check(seed61, "--ranks", 16, "--gpu-memory", size).out)
        model, job = spec_table.load(seed61), Job("m", "p", "o")
        totals = [plan_memory(model, job, place(model, 16), Sizes(n, 1024, 1024), "device").total
                  for n in (int(found), int(found) + 1)]
        assert totals[0] <= parse_size(size) < totals[1]

    def test_the_largest_batch_is_named_where_the_one_asked_for_does_not_fit(self, check, tmp_path):
        job = job_files(tmp_path, 3, 7, 5, model_spec=replace(MOE, context=10**6))
        more = "--ranks", 4, "--set", "generate.max_new_tokens=900000", "--set"
        refused = check(job, "--gpu-memory", "2GB", *more, "schedule.max_sequences=30")
        found, = re.findall(r"schedule\.max_sequences = (\d+)$", refused.err.strip())
        assert refused.code == 2 and refused.err.count("\n") == 1 and "do not hold it" in refused.err
        fits = check(job, "--gpu-memory", "2GB", *more, f"schedule.max_sequences={found}")
        assert fits.code == 0 and f"largest batch that does is schedule.max_sequences = {found}." in fits.out
        assert check(job, "--gpu-memory", "2GB", *more, f"schedule.max_sequences={int(found) + 1}").code == 2

    def test_what_is_left_to_be_planned_is_planned_so_that_it_fits(self, check, tmp_path):
        job = job_files(tmp_path, *[3] * 30, model_spec=replace(MOE, context=10**6))
        result = check(job, "--gpu-memory", "2GB", "--set", "generate.max_new_tokens=900000")
        found, = re.findall(r"schedule\.max_sequences = (\d+)", result.out)
        assert result.code == 0 and 1 < int(found) < 30 and f"up to {found} sequences" in result.out

    def test_not_even_one_sequence(self, check, tmp_path):
        job = job_files(tmp_path, 3, model_spec=replace(MOE, context=10**8))
        refused = check(job, "--gpu-memory", "2GB", "--set", "generate.max_new_tokens=90000000")
        assert refused.code == 2 and "not even one sequence fits" in refused.err and refused.err.count("\n") == 1

    def test_float32_is_not_for_gpus(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        assert_one_line(check(job, "--gpu-memory", "80GB", "--set", "compute.dtype=float32"), 2, "computed on CPUs")

    def test_without_a_size_a_cpus_needs_are_shown(self, check, seed61):
        """float32 weights: twice those of the GPU."""
        assert re.search(r"attention +114\.6 GB", check(seed61, "--ranks", 16).out)

    def test_fewer_experts_a_rank_are_advised_where_they_help(self, check, seed61):
        err = check(seed61, "--ranks", 2, "--gpu-memory", "80GB").err
        assert "more ranks hold fewer experts" in err

    def test_more_ranks_are_not_advised_where_they_do_not_help(self, check, seed61):
        assert "more ranks hold fewer" not in check(seed61, "--ranks", 16, "--gpu-memory", "64GB").err

    @pytest.mark.parametrize(
        "size", ["", " ", "lots", "80XB", "GB", "-80GB", "8 0GB", "1.2.3GB", "80GB/s", "nan", "infGB"]
    )
    def test_a_size_that_is_none(self, size, check, tmp_path):
        assert_one_line(check(job_files(tmp_path, 3), "--gpu-memory", size), 2, "--gpu-memory")

    @pytest.mark.parametrize("size", ["80gb", "80G", "80GIB", "80g"])
    def test_sizes_as_slurm_and_people_write_them(self, size, check, seed61):
        assert check(seed61, "--ranks", 16, "--gpu-memory", size).code == 0


class TestWrong:
    """Each mistake ends with its code and one line, before anything is printed."""

    def test_an_unknown_key(self, check, tmp_path):
        assert_one_line(
            check(job_files(tmp_path, 3, rest="[generate]\nmax_token = 3")), 2, "generate.max_token", "max_new_tokens"
        )

    @pytest.mark.parametrize("name", ["model", "prompts"])
    def test_a_missing_file(self, name, check, tmp_path):
        job = job_files(tmp_path, 3)
        (tmp_path / f"{name}.h5").unlink()
        assert_one_line(check(job), 3, f"{name}.h5 does not exist")

    @pytest.mark.parametrize("name", ["model", "prompts"])
    def test_a_truncated_file(self, name, check, tmp_path):
        job = job_files(tmp_path, 3)
        path = tmp_path / f"{name}.h5"
        path.write_bytes(path.read_bytes()[:-100])
        assert_one_line(check(job), 3, f"{name}.h5", "truncated")

    @pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.ndjson"])
    def test_text_given_as_prompts_says_how_to_make_them(self, name, check, tmp_path):
        job = job_files(tmp_path, 3)
        jsonl(tmp_path / name, {"text": "x"})
        assert_one_line(check(job, "--set", f"prompts={tmp_path / name}"), 3, name, "hpcmoe prompts")

    def test_files_in_each_others_place(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        assert_one_line(
            check(job, "--set", f"prompts={tmp_path / 'model.h5'}"), 3, "is a model file where a prompts file"
        )
        assert_one_line(
            check(job, "--set", f"model={tmp_path / 'prompts.h5'}"), 3, "is a prompts file where a model file"
        )

    def test_a_checkpoint_given_as_model_says_how_to_make_one(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        checkpoint = ROOT / "tests" / "goldens" / "mixtral"
        assert_one_line(check(job, "--set", f"model={checkpoint}"), 3, "hpcmoe convert")

    def test_no_prompts(self, check, tmp_path):
        assert_one_line(check(job_files(tmp_path)), 3, "no prompts")

    @pytest.mark.parametrize("length, words", [(0, "empty"), (64, "context"), (100, "context")])
    def test_prompts_that_do_not_fit(self, length, words, check, tmp_path):
        assert_one_line(check(job_files(tmp_path, 3, length)), 3, "prompt 1 (id p1)", words)

    def test_a_token_outside_the_vocabulary(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        prompts.write(tmp_path / "prompts.h5", ["a"], [np.array([300])])
        assert_one_line(check(job), 3, "id a", "300")

    def test_an_output_of_another_job(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        finish(job, "another")
        assert_one_line(check(job), 2, "out.h5", "another job", "--overwrite")

    def test_parts_of_another_job(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        finish(job, "another", pack=False)
        assert_one_line(check(job), 2, "another job", "--overwrite")

    def test_an_output_of_other_prompts(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        finish(job)
        job_files(tmp_path, 4)
        assert_one_line(check(job), 2, "another job")

    @pytest.mark.parametrize("name", ["model", "prompts", "job"])
    def test_an_output_that_is_an_input(self, name, check, tmp_path):
        """With --overwrite, a run would delete what it is to read."""
        job = job_files(tmp_path, 3)
        path = job if name == "job" else tmp_path / f"{name}.h5"
        assert_one_line(check(job, "--set", f"output={path}"), 2, path.name)

    def test_an_output_that_is_a_folder(self, check, tmp_path):
        (tmp_path / "out.h5").mkdir()
        assert_one_line(check(job_files(tmp_path, 3)), 2, "out.h5", "folder")

    def test_an_output_below_a_file(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        (tmp_path / "file").write_text("x")
        assert_one_line(check(job, "--set", f"output={tmp_path / 'file' / 'out.h5'}"), 2, "file")

    def test_a_result_that_is_truncated(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        finish(job)
        path = tmp_path / "out.h5"
        path.write_bytes(path.read_bytes()[:-100])
        result = check(job)
        assert result.code in (2, 3) and "out.h5" in result.err and result.err.count("\n") == 1 and not result.out

    def test_a_model_of_a_newer_version(self, check, tmp_path):
        job = job_files(tmp_path, 3)
        with h5py.File(tmp_path / "model.h5", "r+") as file:
            file.attrs["format_version"] = 99
        assert_one_line(check(job), 3, "format version 99", "update hpcmoe")


class TestSpec:
    """A spec on its own."""

    def test_a_spec_shows_what_its_weights_need(self, check, tmp_path):
        result = check(spec_file(tmp_path / "s.toml"), "--ranks", 4)
        assert (result.code, result.err) == (0, "") and "spec" in result.out and "experts" in result.out

    def test_a_wrong_spec(self, check, tmp_path):
        path = spec_file(tmp_path / "s.toml")
        path.write_text(path.read_text().replace("top_k = 2", "top_k = 5"))
        assert_one_line(check(path), 3, "moe.top_k: 5 is more than experts = 4")

    @pytest.mark.parametrize("path", sorted((ROOT / "inputs").glob("seed61*.toml")), ids=lambda p: p.name)
    def test_inputs_of_the_repository_are_right(self, path, check, tmp_path):
        """Specs, and jobs where their prompts have been made."""
        result = check(path, "--ranks", 16)
        assert result.code == 0 or "prompts" in result.err, result.err

    def test_a_model_file_given_as_a_job_says_what_a_job_is(self, check, tmp_path):
        assert_one_line(check(model_file(tmp_path)), 2, "job file", "model.h5")
