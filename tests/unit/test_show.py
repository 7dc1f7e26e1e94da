"""`hpcmoe show`: every layout of ours, in a wide and a narrow terminal."""

import os
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import MOE, Given, answer, assert_one_line, command, model_file, origin, step_time

from hpcmoe.files import model, parts, prompts, results
from hpcmoe.files.parts import Part
from hpcmoe.report import text
from hpcmoe.types import STAGES


@pytest.fixture
def show(capsys, monkeypatch):
    """`show` with words -> its page; it must end well."""

    def call(*words) -> str:
        result = command(capsys, monkeypatch, "show", *words)
        assert (result.code, result.err) == (0, ""), result
        return result.out

    monkeypatch.delenv("COLUMNS", raising=False)
    return call


def prompts_file(path, count=3, texts=True):
    prompts.write(
        path,
        [f"id-{n}" for n in range(count)],
        [np.arange(n + 1) for n in range(count)],
        [f"text of {n}" for n in range(count)] if texts else [],
    )
    return path


def results_file(path, count=3, said="said {}", experts=4):
    """Results of `count` prompts; `said` is the text, with the first token put in."""
    answers = [answer(n, n, 9, stop="eos") for n in range(count)]
    load = np.arange(2 * experts).reshape(2, experts) * np.array([[0], [1]])
    parts.write(path, 0, 0, 0, Part(tuple(answers), load, (step_time(0), step_time(1))), origin())
    found = prompts.Prompts(np.zeros(count, np.int32), np.arange(count + 1), tuple(f"id-{n}" for n in range(count)))
    results.pack(path, found, origin(), lambda tokens: said.format(tokens[0]))
    return path


class TestLayouts:
    """What a person wants to know of each."""

    def test_how_long_prompts_waited_for_their_first_tokens(self, show, tmp_path):
        waits = enumerate((0.5, 2.0, 3.0, float("nan")))
        answers = tuple(replace(answer(n, 1, 9), first=seconds) for n, seconds in waits)
        parts.write(tmp_path / "o.h5", 0, 0, 0, Part(answers, np.zeros((1, 2), np.int64), (step_time(0),)), origin())
        found = prompts.Prompts(np.zeros(4, np.int32), np.arange(5), tuple("abcd"))
        results.pack(tmp_path / "o.h5", found, origin(), lambda tokens: "")
        assert "half had it within 2.0 s, 99 % within 3.0 s, all within 3.0 s" in show(tmp_path / "o.h5")
        assert "First token" not in show(results_file(tmp_path / "none.h5"))

    def test_a_model(self, show, tmp_path):
        page = show(model_file(tmp_path, text=True, dtype="bfloat16"))
        for word in (
            "model",
            "tiny-moe",
            "bfloat16",
            "with a tokenizer",
            "experts",
            "attention",
            "vocabulary = 300",
            "hpcmoe 0",
        ):
            assert word in page

    def test_a_model_without_a_tokenizer(self, show, tmp_path):
        assert "without a tokenizer" in show(model_file(tmp_path))

    def test_prompts(self, show, tmp_path):
        page = show(prompts_file(tmp_path / "p.h5"))
        for word in ("prompts", "3 prompts", "1 to 3 tokens", "6 in all", "id-1", "text of 2"):
            assert word in page

    def test_prompts_without_text_show_their_tokens(self, show, tmp_path):
        assert "[0, 1, 2]" in show(prompts_file(tmp_path / "p.h5", texts=False))

    def test_prompts_of_none(self, show, tmp_path):
        assert "prompts" in show(prompts_file(tmp_path / "p.h5", count=0))

    def test_results(self, show, tmp_path):
        page = show(results_file(tmp_path / "r.h5"))
        for word in ("results", "id-1", "said 2", "eos", "2 ranks", "host", "tokens/s", *STAGES):
            assert word in page

    def test_loads_are_shown_by_expert(self, show, tmp_path):
        page = show(results_file(tmp_path / "r.h5"))
        assert "expert" in page and "31.8 %" in page  # 7 of 4 + 5 + 6 + 7

    def test_many_experts_are_cut_to_the_busiest(self, show, tmp_path):
        page = show(results_file(tmp_path / "r.h5", experts=256))
        assert "others" in page and page.count("\n") < 80

    def test_results_without_text_show_their_tokens(self, show, tmp_path):
        assert "[1, 9]" in show(results_file(tmp_path / "r.h5", said=""))

    def test_a_part(self, show, tmp_path):
        path = parts.write(
            tmp_path / "o.h5", 0, 0, 0, Part((answer(5, 1, 2),), np.ones((2, 4), np.int64), ()), origin()
        )
        page = show(path)
        assert "part" in page and "prompt 5" in page and "[1, 2]" in page

    def test_a_part_of_nothing(self, show, tmp_path):
        path = parts.write(tmp_path / "o.h5", 0, 0, 0, Part((), np.zeros((2, 4), np.int64), (step_time(0),)), origin())
        assert "part" in show(path)

    @pytest.mark.filterwarnings("error")
    def test_an_answer_of_no_tokens(self, show, tmp_path):
        path = parts.write(tmp_path / "o.h5", 0, 0, 0, Part((answer(5),), np.zeros((2, 4), np.int64), ()), origin())
        assert "nan" not in show(path)

    def test_a_dense_models_results_have_no_loads(self, show, tmp_path):
        path = parts.write(tmp_path / "o.h5", 0, 0, 0, Part((answer(0, 1),), np.zeros((2, 0), np.int64), ()), origin())
        assert "expert" not in show(path)


class TestLimit:
    """Prompts at most."""

    @pytest.mark.parametrize("make", [prompts_file, results_file])
    def test_the_rest_is_counted(self, make, show, tmp_path):
        page = show(make(tmp_path / "x.h5", count=9), "--limit", 2)
        assert "id-1" in page and "id-2" not in page and "7 more" in page

    @pytest.mark.parametrize("make", [prompts_file, results_file])
    def test_none_at_all(self, make, show, tmp_path):
        page = show(make(tmp_path / "x.h5"), "-n", 0)
        assert "id-0" not in page and "3 more" in page

    def test_twenty_without_a_limit(self, show, tmp_path):
        page = show(prompts_file(tmp_path / "x.h5", count=25))
        assert "id-19" in page and "id-20" not in page and "5 more" in page

    def test_all_are_all(self, show, tmp_path):
        assert "more" not in show(prompts_file(tmp_path / "x.h5"), "-n", 3)


class TestWidth:
    """In a terminal, and in a log."""

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_no_text_is_wider_than_the_terminal(self, width, show, monkeypatch, tmp_path):
        """Answers and prompts, which are set in; other lines may hold a path, and are for the terminal to wrap."""
        monkeypatch.setenv("COLUMNS", str(width))
        for page in (
            show(results_file(tmp_path / "r.h5", said="words and words " * 50)),
            show(model_file(tmp_path)),
            show(prompts_file(tmp_path / "p.h5")),
        ):
            assert max((len(line) for line in page.splitlines() if line.startswith("    ")), default=0) <= width

    def test_a_narrow_page_says_the_same(self, show, monkeypatch, tmp_path):
        path = results_file(tmp_path / "r.h5")
        monkeypatch.setenv("COLUMNS", "40")
        page = show(path)
        assert "id-1" in page and "said 2" in page and "combine" in page

    def test_a_log_has_no_colours(self, show, tmp_path):
        assert "\x1b" not in show(results_file(tmp_path / "r.h5"))


class TestWords:
    """What people and models write is shown as it is, not interpreted."""

    @pytest.mark.parametrize("said", ["[bold]x[/bold]", "[/]", "a [link=x] b", ":smile:", "[1, 2]"])
    def test_markup_in_an_answer_is_text(self, said, show, tmp_path):
        assert said in show(results_file(tmp_path / "r.h5", said=said))

    @pytest.mark.parametrize("name", ["v2 [chat]", "v2 [/chat]", "a :smile: b"])
    def test_markup_in_a_models_name_is_text(self, name, show, tmp_path):
        page = show(model_file(tmp_path, replace(MOE, name=name)))
        assert page.count(name) >= 2  # in the head line and in the spec

    @pytest.mark.parametrize("folder", ["[old]", "run :fire:"])
    def test_markup_in_a_path_is_text(self, folder, show, monkeypatch, tmp_path):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path)
        assert f"{folder}/p.h5" in show(prompts_file(tmp_path / folder / "p.h5").relative_to(tmp_path))

    def test_markup_in_an_id_is_text(self, show, tmp_path):
        prompts.write(tmp_path / "p.h5", ["[red]1"], [np.array([1])], ["x"])
        assert "[red]1" in show(tmp_path / "p.h5")

    def test_a_text_cannot_steer_the_terminal(self, show, tmp_path):
        """An answer with escape sequences would clear the screen or worse."""
        assert "\x1b" not in show(results_file(tmp_path / "r.h5", said="\x1b[2Jgone \x1b]0;title\x07"))

    def test_any_alphabet(self, show, tmp_path):
        assert "größe 数 🦜" in show(results_file(tmp_path / "r.h5", said="größe 数 🦜"))

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_a_log_that_knows_no_unicode(self, encoding, tmp_path):
        """As on clusters whose batch jobs have LANG=C or ISO-8859-1."""
        path = results_file(tmp_path / "r.h5", said="数", count=3)
        done = subprocess.run(
            [sys.executable, "-m", "hpcmoe", "show", path, "-n", "2"],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 0, done.stderr.decode(encoding)
        assert b"id-1" in done.stdout and b"combine" in done.stdout

    def test_a_reader_that_has_seen_enough(self, tmp_path):
        """hpcmoe show FILE | head -1"""
        path = results_file(tmp_path / "r.h5", count=500, said="words " * 100)
        with subprocess.Popen(
            [sys.executable, "-m", "hpcmoe", "show", path, "-n", "500"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            process.stdout.readline()
            process.stdout.close()
            assert "Traceback" not in process.stderr.read()


class TestMistakes:
    """Files that are none."""

    def test_a_missing_file(self, capsys, monkeypatch, tmp_path):
        assert_one_line(command(capsys, monkeypatch, "show", tmp_path / "x.h5"), 3, "does not exist")

    def test_a_text_file(self, capsys, monkeypatch, tmp_path):
        (tmp_path / "job.toml").write_text("mode = 1\n" * 99)
        assert_one_line(command(capsys, monkeypatch, "show", tmp_path / "job.toml"), 3, "not an HDF5 file")

    def test_a_layout_of_another_version(self, capsys, monkeypatch, tmp_path):
        with h5py.File(prompts_file(tmp_path / "p.h5"), "r+") as file:
            file.attrs["format"] = "hpcmoe-hologram"
        assert_one_line(command(capsys, monkeypatch, "show", tmp_path / "p.h5"), 3, "hologram file", "update hpcmoe")

    def test_a_model_with_nan_can_be_looked_at(self, show, tmp_path):
        model.write(tmp_path / "m.h5", Given(MOE, norm=np.full(16, np.nan, np.float32)), "float32")
        assert "tiny-moe" in show(tmp_path / "m.h5")


def test_show_needs_no_mpi(tmp_path):
    code = "import sys; sys.modules['mpi4py'] = None; from hpcmoe.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "show", model_file(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "count, words",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (64.1e9, "64.1 GB"), (999_960, "1.0 MB"), (5e18, "5000.0 PB")],
)
def test_sizes_are_in_powers_of_ten(count, words):
    assert text.size(count) == words
