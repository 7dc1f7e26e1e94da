"""Job files: keys, defaults, overrides, and everything that can be wrong with them."""

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from hpcmoe import config, tables
from hpcmoe.config import Job
from hpcmoe.errors import InputError, JobError

NEEDED = {"model": "m.h5", "prompts": "p.h5", "output": "o.h5"}
DEFAULTS = {
    "mode": "generate",
    "generate": {"max_new_tokens": 64, "seed": 0, "ignore_eos": False},
    "compute": {"device": "auto", "dtype": "bfloat16"},
    "exchange": {"mode": "auto"},
    "schedule": {"mode": "auto", "max_sequences": 0, "max_tokens": 0},
    "checkpoint": {"every": 300.0},
}
"""As the design fixes them. Keys that join later have defaults too."""


def job(folder: Path, rest: str = "") -> Path:
    path = folder / "job.toml"
    path.write_text('model = "m.h5"\nprompts = "p.h5"\noutput = "o.h5"\n' + rest, encoding="utf-8")
    return path


def refused(folder: Path, rest: str = "", overrides: typing.Iterable[str] = ()) -> str:
    """What `load` says of a job that is wrong: one line."""
    with pytest.raises(JobError) as caught:
        config.load(job(folder, rest), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(cls: type, path: str = "") -> list[tuple[str, dataclasses.Field, type]]:
    """Every key of the job file: its dotted path, its field and its type."""
    found, hints = [], typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        at = f"{path}{f.name}"
        found += (
            leaves(hints[f.name], at + ".") if dataclasses.is_dataclass(hints[f.name]) else [(at, f, hints[f.name])]
        )
    return found


LEAVES = leaves(Job)
NAMES = [at for at, _, _ in LEAVES]
WRONG = {
    int: ["true", "1.5", '"3"', "[1]"],
    float: ["true", '"3"', "[1.0]"],
    str: ["1", "true", "[]"],
    bool: ["0", "1", '"true"'],
    tuple[int, ...]: ["1", '"1"', "[true]", "[1.5]", '["1"]', "[[1]]"],
}


@pytest.mark.parametrize("table", DEFAULTS)
def test_defaults_are_those_of_the_design(table, tmp_path):
    found = dataclasses.asdict(config.load(job(tmp_path)))[table]
    wanted = DEFAULTS[table]
    assert found == wanted if isinstance(wanted, str) else wanted.items() <= found.items()


@pytest.mark.parametrize("at, field, hint", LEAVES, ids=NAMES)
def test_every_key_has_a_meaning_and_only_three_lack_a_default(at, field, hint):
    assert field.metadata["help"]
    assert (field.default is dataclasses.MISSING) == (at in NEEDED)


@pytest.mark.parametrize(
    "at, field, hint", [leaf for leaf in LEAVES if leaf[0] not in NEEDED], ids=[n for n in NAMES if n not in NEEDED]
)
def test_a_default_may_be_written_out(at, field, hint, tmp_path):
    default = field.default
    word = default if isinstance(default, str) else json.dumps(default)
    assert config.load(job(tmp_path), [f"{at}={word}"]) == config.load(job(tmp_path))


@pytest.mark.parametrize("at, value", [(at, v) for at, _, hint in LEAVES for v in WRONG[hint]])
def test_a_value_of_the_wrong_type_is_refused_with_the_key_and_what_it_should_be(at, value, tmp_path):
    line = refused(tmp_path, overrides=[f"{at}={value}"])
    assert f"{at}: should be" in line


@pytest.mark.parametrize("at, field", [(at, f) for at, f, _ in LEAVES if f.metadata["choices"]])
def test_a_choice_that_there_is_not_lists_the_choices(at, field, tmp_path):
    line = refused(tmp_path, overrides=[f"{at}=nonsense"])
    assert at in line and "nonsense" in line and all(choice in line for choice in field.metadata["choices"])


@pytest.mark.parametrize("at, field", [(at, f) for at, f, _ in LEAVES if f.metadata["choices"]])
def test_every_choice_is_taken(at, field, tmp_path):
    for choice in field.metadata["choices"]:
        found = config.load(job(tmp_path), [f"{at}={choice}"])
        for name in at.split("."):
            found = getattr(found, name)
        assert found == choice


@pytest.mark.parametrize(
    "at, field, hint",
    [leaf for leaf in LEAVES if leaf[1].metadata["least"] is not None],
    ids=[at for at, f, _ in LEAVES if f.metadata["least"] is not None],
)
def test_the_least_value_is_taken_and_one_below_is_not(at, field, hint, tmp_path):
    least = field.metadata["least"]
    config.load(job(tmp_path), [f"{at}={least}"])
    assert f"{at}: should be at least {least}" in refused(tmp_path, overrides=[f"{at}={least - 1}"])


MOST = [(at, f.metadata["most"]) for at, f, _ in LEAVES if f.metadata.get("most") is not None]


@pytest.mark.parametrize("at, most", MOST)
def test_the_greatest_value_is_taken_and_one_above_is_not(at, most, tmp_path):
    config.load(job(tmp_path), [f"{at}={most}"])
    assert f"{at}: should be at most {most}" in refused(tmp_path, overrides=[f"{at}={most + 1}"])


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_number_that_is_none_is_not_in_any_range(value, tmp_path):
    assert "checkpoint.every" in refused(tmp_path, overrides=[f"checkpoint.every={value}"])


@pytest.mark.parametrize(
    "rest, unknown, nearest",
    [
        ("outptu = 1", "outptu", "output"),
        ("[generate]\nmax_new_token = 3", "generate.max_new_token", "max_new_tokens"),
        ("[generat]\nseed = 3", "generat", "generate"),
        ("[compute]\nDtype = 'float32'", "compute.Dtype", "dtype"),
        ("[schedule]\nmax-tokens = 3", "schedule.max-tokens", "max_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(rest, unknown, nearest, tmp_path):
    line = refused(tmp_path, rest)
    assert f"{unknown}: unknown key" in line and f"did you mean {nearest}?" in line


def test_an_unknown_key_with_nothing_near_lists_what_there_is(tmp_path):
    line = refused(tmp_path, "[checkpoint]\nzzzz = 1")
    assert "checkpoint.zzzz" in line and "every" in line


@pytest.mark.parametrize("name", NEEDED)
def test_each_of_the_three_needed_keys_is_missed_by_name(name, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text("".join(f'{k} = "{v}"\n' for k, v in NEEDED.items() if k != name))
    with pytest.raises(JobError, match=f"{name}: missing"):
        config.load(path)


def test_every_complaint_names_the_file(tmp_path):
    assert str(tmp_path / "job.toml") in refused(tmp_path, "x = 1")


@pytest.mark.parametrize("value", ["3", '"x"', "[]", "true", "[{}]"])
def test_a_section_that_is_a_value_is_refused(value, tmp_path):
    assert "generate" in refused(tmp_path, f"generate = {value}")


class TestFile:
    """The file itself."""

    @pytest.mark.parametrize("text", ["model = ", "model = m.h5", "[generate", "a = 1\na = 2", '{"model": "m.h5"}'])
    def test_what_is_not_toml_is_refused_with_the_place(self, text, tmp_path):
        path = tmp_path / "job.toml"
        path.write_text(text)
        with pytest.raises(JobError, match=r"not valid TOML.*(line|end of document)") as caught:
            config.load(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(JobError, match="does not exist"):
            config.load(tmp_path / "job.toml")

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(JobError, match="folder"):
            config.load(tmp_path)

    def test_a_path_through_a_file_is_refused(self, tmp_path):
        with pytest.raises(JobError):
            config.load(job(tmp_path) / "more.toml")

    def test_a_binary_file_is_refused(self, tmp_path):
        path = tmp_path / "job.toml"
        path.write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
        with pytest.raises(JobError, match="not a text file"):
            config.load(path)

    def test_a_file_of_windows_is_read(self, tmp_path):
        """Carriage returns, and the mark that Notepad puts in front."""
        path = job(tmp_path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert config.load(path).model == str(tmp_path / "m.h5")

    def test_a_file_is_utf8_whatever_the_locale(self, tmp_path):
        path = job(tmp_path, "# größer\n")
        code = f"from pathlib import Path; from hpcmoe import config; print(config.load(Path({str(path)!r})).mode)"
        plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain)
        assert done.stdout == "generate\n", done.stderr

    def test_the_error_of_a_table_is_the_callers(self, tmp_path):
        with pytest.raises(InputError, match=r"spec .* does not exist"):
            tables.read(tmp_path / "s.toml", InputError, "spec")


class TestPaths:
    """Relative to the file in the file, to the working directory on the command line."""

    def test_paths_in_the_file_are_relative_to_it(self, tmp_path, monkeypatch):
        (tmp_path / "jobs").mkdir()
        monkeypatch.chdir(tmp_path)
        found = config.load(Path("jobs") / job(tmp_path / "jobs").name)
        assert (found.model, found.prompts, found.output) == tuple(str(tmp_path / "jobs" / n) for n in NEEDED.values())

    def test_paths_in_overrides_are_relative_to_the_working_directory(self, tmp_path, monkeypatch):
        (tmp_path / "jobs").mkdir()
        monkeypatch.chdir(tmp_path)
        found = config.load(job(tmp_path / "jobs"), ["output=o.h5", 'model="m.h5"'])
        assert (found.model, found.output) == (str(tmp_path / "m.h5"), str(tmp_path / "o.h5"))
        assert found.prompts == str(tmp_path / "jobs" / "p.h5")

    @pytest.mark.parametrize("key", config.PATHS)
    def test_a_path_with_a_zero_is_refused(self, key, tmp_path):
        with pytest.raises(JobError, match=f"{key} has a character with the code 0"):
            config.load(job(tmp_path), [f"{key}='a' # x", f'{key}="\\u0000"'])

    def test_absolute_paths_stay(self, tmp_path):
        assert config.load(job(tmp_path), ["model=/a/m.h5"]).model == "/a/m.h5"

    def test_the_home_directory_may_be_a_tilde(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", "/home/someone")
        assert config.load(job(tmp_path), ["output=~/o.h5"]).output == "/home/someone/o.h5"

    def test_the_tilde_of_somebody_unknown_is_no_traceback(self, tmp_path):
        """The shell leaves such a word as it is; it may as well be a file's name."""
        try:
            found = config.load(job(tmp_path), ["output=~nobody-of-this-name/o.h5"]).output
        except JobError as error:
            found = str(error)
        assert "~nobody-of-this-name" in found

    def test_a_job_that_is_a_link_is_relative_to_what_it_links_to(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link.toml").symlink_to(job(tmp_path / "real"))
        assert config.load(tmp_path / "link.toml").model == str(tmp_path / "real" / "m.h5")


class TestOverrides:
    """`--set section.key=value`."""

    @pytest.mark.parametrize(
        "text, value",
        [
            ("generate.max_new_tokens=16", 16),
            ("generate.max_new_tokens = 16", 16),
            ("generate.max_new_tokens=1_000", 1000),
            ("generate.max_new_tokens=0x10", 16),
        ],
    )
    def test_a_value_is_toml(self, text, value, tmp_path):
        assert config.load(job(tmp_path), [text]).generate.max_new_tokens == value

    @pytest.mark.parametrize("word", ["float32", '"float32"', "'float32'", " float32 "])
    def test_a_bare_word_is_a_string(self, word, tmp_path):
        assert config.load(job(tmp_path), [f"compute.dtype={word}"]).compute.dtype == "float32"

    def test_a_value_may_have_equals_signs_and_blanks(self, tmp_path):
        assert config.load(job(tmp_path), ["output=/a/b=c d.h5"]).output == "/a/b=c d.h5"

    def test_an_override_wins_over_the_file_and_the_last_over_the_first(self, tmp_path):
        path = job(tmp_path, "[generate]\nseed = 1\nmax_new_tokens = 5")
        found = config.load(path, ["generate.seed=2", "generate.seed=3"]).generate
        assert (found.seed, found.max_new_tokens) == (3, 5)

    def test_a_whole_number_is_a_number(self, tmp_path):
        found = config.load(job(tmp_path), ["checkpoint.every=5"]).checkpoint.every
        assert type(found) is float and found == 5

    @pytest.mark.parametrize("text", ["", "generate", "generate.seed", "=3", " =3"])
    def test_a_word_that_is_no_override_says_what_one_is(self, text, tmp_path):
        assert "section.key=value" in refused(tmp_path, overrides=[text])

    @pytest.mark.parametrize(
        "text, word",
        [
            ("generate.sed=3", "did you mean seed"),
            ("genrate.seed=3", "did you mean generate"),
            ("model.name=3", "not a section"),
            ("generate.seed=", "generate.seed"),
            ("generate.seed.x=3", "generate.seed"),
            ("generate=3", "generate"),
            ("generate.max_new_tokens=many", "whole number"),
            ("generate..seed=3", "generate"),
        ],
    )
    def test_a_wrong_override_is_named(self, text, word, tmp_path):
        assert word in refused(tmp_path, overrides=[text])

    def test_an_override_cannot_bring_another_key_with_it(self, tmp_path):
        found = config.load(job(tmp_path), ['model="/a"\nmode = "x"'])
        assert found.mode == "generate"


class TestIdentity:
    """Two jobs of one identity may continue each other."""

    @pytest.mark.parametrize(
        "text",
        [
            "output=/else.h5",
            "exchange.mode=alltoallv",
            "schedule.mode=serial",
            "schedule.max_sequences=3",
            "schedule.max_tokens=9",
            "checkpoint.every=1",
            "compute.device=cpu",
            "parallel.ranks_per_node=4",
            "balance.mode=replicas",
            "balance.replan_every=5",
            "balance.rate=0.1",
        ],
    )
    def test_what_changes_no_result_changes_no_identity(self, text, tmp_path):
        assert config.load(job(tmp_path), [text]).identity() == config.load(job(tmp_path)).identity()

    @pytest.mark.parametrize(
        "text",
        [
            "generate.max_new_tokens=3",
            "generate.ignore_eos=true",
            "mode=score",
            "generate.temperature=0.5",
            "generate.top_p=0.5",
            "compute.dtype=float32",
            "generate.seed=1",
            "balance.mode=bias",
        ],
    )
    def test_what_changes_results_changes_the_identity(self, text, tmp_path):
        assert config.load(job(tmp_path), [text]).identity() != config.load(job(tmp_path)).identity()

    def test_the_rate_of_a_bias_changes_it(self, tmp_path):
        jobs = [config.load(job(tmp_path), ["balance.mode=bias", f"balance.rate={rate}"]) for rate in (0.1, 0.2)]
        assert jobs[0].identity() != jobs[1].identity()

    @pytest.mark.parametrize("other, hint", [("compute.reproducible=true", "compute.reproducible"),
                                             ("balance.replan_every=5", "balance.replan_every")])
    def test_a_bias_goes_with_neither(self, other, hint, tmp_path):
        with pytest.raises(JobError, match=hint):
            config.load(job(tmp_path), ["balance.mode=bias", other])

    def test_the_resolved_job_reads_back_as_itself(self, tmp_path):
        found = config.load(job(tmp_path), ["output=/ü 'x' \"y\" \\z.h5", "checkpoint.every=0.1"])
        assert tables.build(Job, tomllib.loads(found.toml())) == found
