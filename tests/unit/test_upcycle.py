"""Dense models as mixtures of experts that answer as before."""

import numpy as np
import pytest
from helpers import DENSE, Given, assert_same_tensors, read_tensors

from hpcmoe import reference, spec_table, tables
from hpcmoe.convert.upcycle import Copies, Slices
from hpcmoe.files import model
from hpcmoe.files.model import ModelFile

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


class TestUpcycling:
    """A dense model as experts gives the dense model's answers."""

    @pytest.fixture
    def dense(self):
        return Given(DENSE, seed=4)

    @pytest.fixture
    def wanted(self, dense):
        return reference.logits(DENSE, reference.reader(dense), TOKENS)

    @pytest.mark.parametrize(
        "make",
        [
            lambda d: Copies(d, 4, 2, 0),
            lambda d: Copies(d, 1, 1, 0),
            lambda d: Copies(d, 3, 3, 9),
            lambda d: Copies(d, 16, 1, 1),
            lambda d: Slices(d, 2),
            lambda d: Slices(d, 5),
            lambda d: Slices(d, 3),
            lambda d: Slices(d, 4),
            lambda d: Slices(d, 1),
            lambda d: Slices(d, 10),
            lambda d: Slices(d, 16),
        ],
        ids=[
            "4 copies",
            "1 copy",
            "3 of 3 copies",
            "1 of 16 copies",
            "2 slices",
            "5 slices",
            "3 slices, 10 wide",
            "4 slices, 10 wide",
            "1 slice",
            "slices of one",
            "more slices than width",
        ],
    )
    def test_logits_are_those_of_the_dense_model(self, make, dense, wanted):
        upcycled = make(dense)
        spec_table.from_table(tables.parse(tables.dump(upcycled.spec)))
        found = reference.logits(upcycled.spec, reference.reader(upcycled), TOKENS)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * wanted.std())

    @pytest.mark.parametrize("make", [lambda d: Copies(d, 4, 2, 0), lambda d: Slices(d, 3)], ids=["copies", "slices"])
    def test_what_is_written_is_what_was_made(self, make, dense, tmp_path):
        upcycled = make(dense)
        model.write(tmp_path / "m.h5", upcycled, "float32", same=getattr(upcycled, "same", lambda t: None))
        assert_same_tensors(ModelFile(tmp_path / "m.h5"), upcycled)

    def test_the_gate_of_copies_is_random_and_seeded(self, dense):
        gates = [read_tensors(Copies(dense, 4, 2, seed))["layers/000/gate"] for seed in (0, 0, 1)]
        np.testing.assert_array_equal(gates[0], gates[1])
        assert (gates[0] != gates[2]).any() and len(np.unique(gates[0])) > 50

    def test_copies_route_tokens_to_different_experts(self, dense):
        gate = read_tensors(Copies(dense, 4, 2, 0))["layers/000/gate"]
        chosen = np.random.default_rng(0).standard_normal((200, 16)) @ gate.T
        assert (np.bincount(chosen.argmax(axis=1), minlength=4) > 10).all()

    def test_end_tokens_context_and_tokenizer_are_kept(self):
        source = Given(DENSE, tokenizer="{}")
        for upcycled in (Copies(source, 4, 2, 0), Slices(source, 3)):
            assert (upcycled.spec.eos, upcycled.spec.context, upcycled.tokenizer) == ((256,), 64, "{}")
