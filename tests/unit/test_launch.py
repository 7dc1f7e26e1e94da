"""What a rank knows of the others before it works, and does before it ends the job."""

import os
import subprocess
import sys
import threading
import time

import pytest

from hpcmoe import launch, launcher


def test_what_no_one_has_read_is_counted():
    reader, writer = os.pipe()
    os.write(writer, b"last words")
    assert launcher.unread(writer) == 10
    os.read(reader, 4)
    assert launcher.unread(writer) == 6


def test_a_rank_waits_until_its_words_are_read():
    reader, writer = os.pipe()
    os.write(writer, b"last words")
    taken = []
    thread = threading.Thread(target=lambda: (time.sleep(0.05), taken.append(os.read(reader, 10))))
    thread.start()
    launcher.be_heard([writer])
    assert launcher.unread(writer) == 0
    thread.join()
    assert taken == [b"last words"]


def test_a_rank_does_not_wait_for_ever(monkeypatch, tmp_path):
    monkeypatch.setattr(launcher, "HEARD", 0.01)
    _, writer = os.pipe()
    os.write(writer, b"last words")
    launcher.be_heard([writer])
    assert launcher.unread(writer) == 10
    with (tmp_path / "file").open("w") as file:
        file.write("kept")
        launcher.be_heard([file.fileno()])


def test_a_blas_that_is_needed_later_has_as_many_threads():
    program = ("from hpcmoe import launch; print(launch.limit_blas(1)); import numpy; "
               "from threadpoolctl import threadpool_info; print(*[info['num_threads'] for info in threadpool_info()])")
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    said = subprocess.run([sys.executable, "-c", program], env=inherited, capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) == {"1"}


@pytest.mark.parametrize("ranks_per_node, nodes", [(0, (0, 0, 1, 1, 0)), (1, (0, 1, 2, 3, 4)), (2, (0, 0, 1, 1, 2)),
                                                   (5, (0,) * 5), (9, (0,) * 5)])
def test_nodes_are_those_that_were_found_or_of_so_many_ranks(ranks_per_node, nodes):
    found = launch.World(None, 0, 5, ("a",) * 5, (1,) * 5, (0, 0, 1, 1, 0), 1, launch.spin, "an MPI")
    assert launch.with_nodes(found, ranks_per_node).nodes == nodes
