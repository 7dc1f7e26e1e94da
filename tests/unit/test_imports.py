"""Imports run one way, floor by floor (docs/design.md), and no file grows too long."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "hpcmoe"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    {"child", "errors", "paths", "tables", "ulfm"},
    {"config", "shard", "slots", "spec", "spec_table", "traffic", "types"},
    {"array", "gpu", "launch", "launcher", "notice", "switches"},
    {"kernels", "files", "reference"},
    {"device"},
    {"model", "exchange", "placement"},
    {"engine"},
    {"predict", "bench", "convert", "report"},
    {"__main__"},
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
NEIGHBOURS = {"model", "exchange", "placement"}
LONGEST = 300


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def part(path: Path) -> str:
    """The package or module of the design that a file belongs to, "" for hpcmoe/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too; of hpcmoe's, its parts: "hpcmoe.files"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(path)}: relative import"
            if node.module == "hpcmoe":
                found |= {f"hpcmoe.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
            else:
                found.add(node.module or "")
    return found


def own(path: Path) -> set[str]:
    """The parts of hpcmoe that a file imports."""
    return {m.split(".")[1] for m in imported(path) if m.startswith("hpcmoe.")}


def outside(path: Path) -> set[str]:
    """The packages of others that a file imports."""
    return {m.split(".")[0] for m in imported(path)} - {"hpcmoe"}


def loaded(module: str) -> set[str]:
    """Top-level names in sys.modules after importing `module` in a fresh process."""
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_from_its_own_floor_or_below(path):
    mine = FLOOR.get(part(path), -1)
    assert part(path) == "" or part(path) in FLOOR, f"{name(path)} is on no floor: say in the design where it belongs"
    above = {p for p in own(path) if FLOOR[p] > mine}
    assert not above, f"{name(path)} imports {above}, which are above it"


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in NEIGHBOURS], ids=name)
def test_model_exchange_and_placement_never_import_each_other(path):
    assert not own(path) & (NEIGHBOURS - {part(path)})


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_main_imports_the_reports(path):
    assert "report" not in own(path) or part(path) in ("report", "__main__")


@pytest.mark.parametrize("file", ["engine/layer.py", "engine/schedule.py"])
def test_the_schedule_knows_no_mpi_and_no_cupy(file):
    path = PACKAGE / file
    assert not outside(path) & {"mpi4py", "cupy"}
    assert not loaded("hpcmoe." + file.removesuffix(".py").replace("/", ".")) & {"mpi4py", "cupy"}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if part(p) in ("errors", "tables", "config", "slots", "spec", "traffic", "types")],
    ids=name,
)
def test_the_words_that_all_share_need_no_files_mpi_or_gpu(path):
    assert not outside(path) & {"h5py", "mpi4py", "cupy"}


def test_the_command_line_loads_nothing_heavy():
    heavy = {"numpy", "h5py", "mpi4py", "cupy", "ml_dtypes", "tokenizers", "safetensors", "gguf", "rich", "tqdm"}
    assert not loaded("hpcmoe.__main__") & heavy


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_depends_on_assertions(path):
    """`python -O` leaves them out: they are for defects, and no one catches them."""
    caught = [
        node.type
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type
    ]
    assert not any("AssertionError" in ast.unparse(kind) for kind in caught)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_is_over_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_there_are_files_to_look_at():
    assert {part(p) for p in FILES} >= {"errors", "tables", "config", "spec", "files", "engine", "__main__"}
