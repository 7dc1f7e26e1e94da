"""The command line as a user types it: help, versions, and mistakes."""

import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from helpers import assert_one_line, command

from hpcmoe import __version__, config
from hpcmoe.__main__ import cli

VERBS = sorted(cli.commands)
HEAVY = ("numpy", "h5py", "mpi4py", "cupy", "ml_dtypes", "tokenizers", "gguf", "safetensors", "tqdm", "rich")
SCRIPT = Path(sysconfig.get_path("scripts")) / "hpcmoe"
TRACE = """
import sys
from hpcmoe.__main__ import main
try:
    main()
finally:
    print(*[m for m in {heavy!r} if m in sys.modules], file=sys.stderr)
"""
MISTAKES = {
    "no verb": [],
    "unknown verb": ["bogus"],
    "misspelt verb": ["sho", "x"],
    "unknown option of the program": ["--bogus"],
    "misspelt option": ["show", "--limt", "3", "x.h5"],
    "missing argument": ["show"],
    "missing option": ["convert", "x"],
    "option without its value": ["show", "x.h5", "--limit"],
    "not a number": ["show", "x.h5", "-n", "many"],
    "out of range": ["check", "x.toml", "--ranks", "0"],
    "not a choice": ["init", "x.toml", "-o", "y.h5", "--dtype", "float8"],
    "one argument too many": ["show", "a.h5", "b.h5"],
    "flag with a value": ["run", "--overwrite=yes", "x.toml"],
    "missing job": ["run", "nowhere.toml"],
    "missing job to check": ["check", "nowhere.toml"],
    "set without a value": ["check", "nowhere.toml", "--set", "a"],
}


def hpcmoe(*words: str, **env: str) -> subprocess.CompletedProcess:
    """The program in a process of its own."""
    import os

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    return subprocess.run([sys.executable, "-m", "hpcmoe", *words], capture_output=True, text=True, env=clean | env)


@pytest.mark.parametrize("words", [[], *([v] for v in VERBS)], ids=lambda w: w[0] if w else "program")
def test_help_says_how_to_use_it_and_loads_nothing_heavy(words, capsys):
    code, taken = TRACE.format(heavy=HEAVY), []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True)
        taken.append(time.perf_counter() - begin)
    with capsys.disabled():
        print(f"\nhpcmoe {' '.join([*words, '--help'])}: {min(taken):.3f} s", end="")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: hpcmoe")
    assert done.stderr.split() == [], "loaded for --help"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_option_and_its_value_is_explained(verb):
    found = cli.commands[verb]
    assert found.help and found.short_help
    assert all(o.help for o in found.params if o.param_type_name == "option")


def test_short_help_is_help(capsys, monkeypatch):
    short, long = (command(capsys, monkeypatch, "show", flag) for flag in ("-h", "--help"))
    assert short == long and long.code == 0


def test_the_script_and_the_module_are_the_same_program():
    module = hpcmoe("check", "--help")
    script = subprocess.run([SCRIPT, "check", "--help"], capture_output=True, text=True)
    assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)


def test_version_names_the_program_and_its_version(capsys, monkeypatch):
    assert command(capsys, monkeypatch, "--version") == (0, f"hpcmoe, version {__version__}\n", "")


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_on_stderr_and_code_2(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_one_line(command(capsys, monkeypatch, *words), 2)
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_process_with_code_2():
    done = hpcmoe("show", "--bogus")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_misspelt_verb_names_the_nearest(capsys, monkeypatch):
    assert "'show'" in command(capsys, monkeypatch, "sho", "x").err


def test_a_mistake_says_where_help_is(capsys, monkeypatch):
    assert "hpcmoe show --help" in command(capsys, monkeypatch, "show").err


@pytest.mark.parametrize("variable", ["PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"])
@pytest.mark.parametrize("words", [["bogus"], ["run", "nowhere.toml", "--bogus"], ["show", "nowhere.h5"]], ids=" ".join)
def test_only_the_first_rank_of_a_launcher_complains(words, variable):
    first, second = hpcmoe(*words, **{variable: "0"}), hpcmoe(*words, **{variable: "1"})
    assert first.stderr.count("\n") == 1
    assert (second.stdout, second.stderr) == ("", "")
    assert first.returncode == second.returncode != 0


def test_a_launcher_that_says_no_number_does_no_harm():
    assert hpcmoe("bogus", PMI_RANK="").stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    ["out.h5", "it's.h5", 'say "hi".h5', "both'\".h5", "back\\slash.h5", "a=b.h5", "ü€ x.h5", "[1].h5", "true", "7"],
)
def test_the_output_on_the_command_line_is_the_path_that_was_typed(name, tmp_path, monkeypatch):
    """`-o` is one more override, whatever characters are in it; relative to the working directory."""
    import hpcmoe.report.run as page

    seen = []
    monkeypatch.setattr(page, "run", lambda path, overrides, *flags: seen.append(config.load(path, overrides)) or 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "job.toml").write_text('model = "m.h5"\nprompts = "p.h5"\noutput = "o.h5"\n')
    monkeypatch.setattr(sys, "argv", ["hpcmoe", "run", str(tmp_path / "job.toml"), "-o", name])
    with pytest.raises(SystemExit) as end:
        from hpcmoe.__main__ import main

        main()
    assert end.value.code == 0
    assert seen[0].output == str(tmp_path / "elsewhere" / name)


def test_no_verb_writes_over_what_it_reads(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    names = ("m.gguf", "s.toml", "m.h5", "folder/config.json", "folder/model.safetensors")
    for name in names:
        Path(name).write_text("dear to me")
    for words in (
        ["convert", "m.gguf", "-o", "m.gguf"],
        ["convert", "folder", "-o", "folder/config.json"],
        ["convert", "folder", "-o", "folder/model.safetensors"],
        ["init", "s.toml", "-o", "s.toml"],
        ["init", "s.toml", "-o", "./folder/../s.toml"],
        ["prompts", "p.txt", "-o", "m.h5", "--model", "m.h5"],
    ):
        assert_one_line(command(capsys, monkeypatch, *words), 2, "which is read")
    assert all(Path(name).read_text() == "dear to me" for name in names)


def test_an_interrupt_is_one_line_without_a_traceback(capsys, monkeypatch):
    import hpcmoe.report.show as page

    def interrupted(path, limit):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "show", interrupted)
    result = command(capsys, monkeypatch, "show", "x.h5")
    assert result.code == 130 and result.err.strip().count("\n") == 0


def test_an_unknown_exception_stays_a_traceback(capsys, monkeypatch):
    """Only the classes of errors.py end with a line: a defect must not look like the user's mistake."""
    import hpcmoe.report.show as page

    def broken(path, limit):
        raise KeyError("x")

    monkeypatch.setattr(page, "show", broken)
    result = command(capsys, monkeypatch, "show", "x.h5")
    assert result.code == 70 and "Traceback" in result.err and "KeyError: 'x'" in result.err
    assert "hpcmoe: error:" not in result.err
