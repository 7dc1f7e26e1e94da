"""The benchmark of the GPU path, where there is no GPU: its floors, its file, and the README's table made of that."""

import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import ROOT

from hpcmoe import spec_table
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe

BENCH = ROOT / "tests" / "bench" / "gpu"
sys.path.append(str(BENCH))
import figures  # noqa: E402
import floors  # noqa: E402
import run  # noqa: E402
import table  # noqa: E402
from figures import Figure, Results  # noqa: E402

MICRO = 1e-6
TINY = ModelSpec("tiny", 3, 10, 50, 8, Attention(4, 2, 3), Dense(6, 1), Moe(1, 1, 5))


def figure(value: float, target: float = 1.25, **more) -> Figure:
    return Figure("experts", "expert stage", "16 rows", 2e-5 * value, 2e-5, value, target, date="2026-01-31", **more)


class TestFloors:
    """By hand, at 4.3e12 bytes/s and 790e12 FLOP/s."""

    def test_few_rows_of_an_expert_take_as_long_as_its_weights(self):
        assert floors.expert(1, 7168, 2048) == pytest.approx(20.49 * MICRO, rel=1e-3)  # 88,080,384 and 28,672 bytes
        assert floors.expert(128, 7168, 2048) == pytest.approx(21.34 * MICRO, rel=1e-3)  # 91,750,400 bytes

    def test_many_take_as_long_as_their_products(self):
        assert floors.expert(1024, 7168, 2048) == pytest.approx(114.17 * MICRO, rel=1e-3)  # 9.0194e10 FLOPs
        assert floors.expert(8192, 7168, 2048) == pytest.approx(913.35 * MICRO, rel=1e-3)

    def test_rows_wait_for_the_gate(self):
        rows, gate = 528_482_304 / 4.3e12, 15_032_385_536 / 790e12
        assert (rows / MICRO, gate / MICRO) == (pytest.approx(122.9, abs=0.05), pytest.approx(19.0, abs=0.05))
        assert floors.routing(4096, 256, 8, 7168) == pytest.approx(rows + gate)

    def test_a_combine_reads_k_rows_and_writes_one(self):
        assert floors.combine(4096, 8, 7168) == pytest.approx(122.9 * MICRO, rel=1e-3)

    def test_matrices_of_a_small_model(self):
        """Each layer 24 x 10 and 10 x 12; a dense one 3 x 6 x 10, the others 3 x 5 x 10 and a gate of 10."""
        assert floors.matrices(TINY) == (3 * 360 + 180 + 2 * 160, 500)

    def test_a_step_reads_weights_and_cache_once(self):
        size = 2 * (1580 + 500 + 4 * 7 * 3 * 2 * 6)
        assert floors.decode(TINY, 4, 7) == pytest.approx(size / 4.3e12)

    def test_steps_of_the_model_of_61_layers(self):
        """31,694,673,920 weights, and 4,093,640,704 bytes of keys and values a sequence."""
        full = spec_table.load(ROOT / "inputs" / "seed61.toml")
        one = replace(full, moe=replace(full.moe, experts=1, top_k=1))
        assert sum(floors.matrices(one)) == 31_694_673_920
        for batch in (1, 4, 8):
            size = 63_389_347_840 + batch * 4_093_640_704
            assert floors.decode(one, batch, 1024) == pytest.approx(size / 4.3e12)

    def test_a_prompt_of_a_small_model(self):
        """Of 5 tokens: all meet the layers, one the head, and 15 pairs of them each other."""
        assert floors.prefill_flops(TINY, 5) == 2 * 1580 * 5 + 2 * 500 + 4 * 15 * 12 * 3


class TestTheFile:
    def test_comes_back_with_four_digits(self, tmp_path):
        path, found = tmp_path / "f.toml", figure(1.23456, launched=1 / 3, note="a note")
        figures.write(path, Results({"device": "a GPU"}, [found], {"model": "ended with code 3"}))
        same = replace(found, seconds=2.469e-5, value=1.235, launched=0.3333)
        assert figures.read(path) == Results({"device": "a GPU"}, [same], {"model": "ended with code 3"})
        assert 'verdict = "met"' in path.read_text()

    def test_none_is_empty(self, tmp_path):
        assert figures.read(tmp_path / "none.toml") == Results({})

    def test_a_row_replaces_its_own_figures_only(self):
        other = replace(figure(1.0), row="routing")
        before = Results({}, [figure(1.5), figure(1.6)], {"experts": "late", "model": "wrong"})
        after = before.replaced(list(run.ROWS), "experts", [figure(1.1)], "").replaced(list(run.ROWS), "routing",
                                                                                       [other], "")
        assert after == Results({}, [other, figure(1.1)], {"model": "wrong"})
        assert after.replaced(list(run.ROWS), "experts", [], "late").failed == {"model": "wrong", "experts": "late"}

    def test_a_ratio_is_met_below_and_a_share_above(self):
        assert figure(1.25).met and not figure(1.251).met
        assert figure(0.75, 0.75, share=True).met and not figure(0.749, 0.75, share=True).met

    def test_the_committed_verdicts_are_those_of_its_values(self):
        if figures.FILE.exists():
            written = [line for line in figures.FILE.read_text().splitlines() if line.startswith("verdict")]
            found = ["met" if f.met else "missed" for f in figures.read(figures.FILE).figures]
            assert written == [f'verdict = "{word}"' for word in found]


class TestTheTable:
    def test_the_readme_has_that_of_the_committed_file(self):
        _, found, _ = table.parts(table.README.read_text())
        assert found == table.table(figures.read(figures.FILE)), "run python tests/bench/gpu/table.py"

    def test_lines(self):
        assert table.line(figure(1.5, note="a note", launched=1.5e-3)) == (
            "| expert stage | 16 rows (a note) | 30.0 µs | 20.0 µs | 1.500 × | ≤ 1.25 × | missed | 1.50 ms | |")
        share = replace(figure(0.9, 0.85, share=True), seconds=1.2, floor=0.1, peer=123.4e-6)
        assert table.line(share) == (
            "| expert stage | 16 rows | 1.20 s | 100 ms | 90.0 % | ≥ 85 % | met | | 123 µs |")

    def test_says_where_and_what_is_missing(self):
        results = Results({"device": "a GPU", "CUDA": "13.0"}, [figure(1.0)], {"model": "ended with code 3"})
        lines = table.table(results).splitlines()
        assert lines[0] == "a GPU, CUDA 13.0; 2026-01-31."
        assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
        assert table.NO_PEER in lines and lines[-1] == "Not measured: model, ended with code 3."
        assert table.NO_PEER not in table.table(Results({"device": "a GPU"}, [figure(1.0, peer=1e-4)]))

    def test_rewriting_changes_nothing_else(self, tmp_path):
        readme, file = tmp_path / "README.md", tmp_path / "f.toml"
        readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nbehind\n")
        table.rewrite(readme, file)
        assert readme.read_text() == f"before\n{table.BEGIN}\n{table.NOT_YET}{table.END}\nbehind\n"
        readme.write_text("no place")
        with pytest.raises(ValueError, match="no place for the table"):
            table.rewrite(readme, file)


class TestTheRunner:
    def test_every_row_has_a_script(self):
        assert all((BENCH / f"{name}.py").exists() for name in run.ROWS)

    def test_a_script_that_hangs_comes_to_an_end(self, monkeypatch):
        monkeypatch.setattr(run, "GRACE", 0.1)
        assert run._run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) is None
        assert run._run([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3

    def test_without_a_gpu_it_says_so(self):
        if run.missing():
            ended = subprocess.run([sys.executable, str(BENCH / "run.py")], capture_output=True, text=True)
            assert (ended.returncode, ended.stdout.count("\n")) == (0, 1)
            assert ended.stdout.startswith("bench-gpu: skipped: no ")

    def test_an_unknown_row_is_named(self):
        ended = subprocess.run([sys.executable, str(BENCH / "run.py"), "gemms"], capture_output=True, text=True)
        assert ended.returncode == 2 and "there is no row gemms: routing, experts" in ended.stderr
