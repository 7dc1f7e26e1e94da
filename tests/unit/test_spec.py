"""Specs of models: which layers are dense, what tensors there are, and what does not fit together."""

from dataclasses import replace

import pytest
from helpers import DENSE, MOE, SEED61, spec_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import spec, spec_table, tables
from hpcmoe.errors import InputError
from hpcmoe.model import weights
from hpcmoe.placement.plan import linear
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe
from hpcmoe.tables import Bad

BFLOAT16 = 2


@st.composite
def specs(draw) -> ModelSpec:
    """Any spec that fits together."""
    size, kv_heads, layers = st.integers(1, 9), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    experts = draw(size)
    moe = draw(
        st.none()
        | st.builds(
            Moe, st.just(experts), st.integers(1, experts), size, st.booleans(), shared_hidden=st.integers(0, 3)
        )
    )
    which = st.integers(0, layers) | st.lists(st.integers(0, layers - 1), unique=True).map(tuple)
    dense = draw(st.builds(Dense, size, which if moe else st.just(layers)))
    attention = Attention(kv_heads * draw(st.integers(1, 3)), kv_heads, 2 * draw(st.integers(1, 4)))
    return ModelSpec(
        draw(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)),
        layers,
        draw(size),
        draw(size),
        8,
        attention,
        dense if moe is None or draw(st.booleans()) else None,
        moe,
        tied_head=draw(st.booleans()),
    )


def refused(text: str) -> str:
    with pytest.raises(Bad) as caught:
        spec_table.from_table(tables.parse(text))
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in SEED61
    return SEED61.replace(old, new)


class TestLayers:
    """Dense layers, by count or by list."""

    def test_a_count_means_the_first_layers(self):
        model = replace(MOE, layers=5, dense=Dense(12, 2))
        assert [model.is_dense(n) for n in range(5)] == [True, True, False, False, False]
        assert model.moe_layers == (2, 3, 4)

    def test_a_list_means_those_layers(self):
        model = replace(MOE, layers=5, dense=Dense(12, (0, 3)))
        assert [model.is_dense(n) for n in range(5)] == [True, False, False, True, False]
        assert model.moe_layers == (1, 2, 4)

    def test_an_empty_list_means_none(self):
        assert replace(MOE, dense=Dense(12, ())).moe_layers == (0, 1, 2)

    def test_without_a_dense_table_all_layers_have_experts(self):
        assert replace(MOE, dense=None).moe_layers == (0, 1, 2)

    def test_without_experts_all_layers_are_dense(self):
        assert DENSE.moe_layers == () and DENSE.experts == 0

    def test_a_list_in_toml_is_a_list(self):
        found = spec_table.from_table(tables.parse(changed("layers = 3", "layers = [0, 5]")))
        assert found.dense == Dense(2048, (0, 5))


class TestTensors:
    """Names and shapes, in the order of a token's way."""

    def test_names_of_a_small_model_are_those_of_the_file_layout(self):
        names = [t.name for t in spec.tensors(replace(MOE, layers=2))]
        assert names[0] == "embedding" and names[-2:] == ["norm", "head"]
        assert {
            "layers/000/dense/gate_up",
            "layers/000/dense/down",
            "layers/001/gate",
            "layers/001/attention_norm",
            "layers/001/attention/qkv",
            "layers/001/attention/o",
            "layers/001/ffn_norm",
            "layers/001/experts/003/gate_up",
            "layers/001/experts/003/down",
        } <= set(names)

    def test_a_tied_head_is_no_tensor(self):
        assert "head" not in [t.name for t in spec.tensors(replace(MOE, tied_head=True))]

    def test_shared_experts_are_tensors_of_their_own(self):
        model = replace(MOE, moe=replace(MOE.moe, shared_hidden=6))
        shapes = {t.name: t.shape for t in spec.tensors(model)}
        assert shapes["layers/001/shared/gate_up"] == (12, 16) and shapes["layers/001/shared/down"] == (16, 6)

    def test_grouped_queries_share_keys_and_values(self):
        shapes = {t.name: t.shape for t in spec.tensors(MOE)}
        assert shapes["layers/000/attention/qkv"] == ((4 + 2 + 2) * 4, 16)

    @given(specs())
    @settings(deadline=None)
    def test_names_are_unique_and_say_layer_and_expert(self, model):
        found = list(spec.tensors(model))
        assert len({t.name for t in found}) == len(found)
        for t in found:
            assert (t.layer is not None) == t.name.startswith("layers/")
            assert (t.expert is not None) == ("/experts/" in t.name)
            assert not any(c.isdigit() for c in t.kind)
            assert t.values > 0

    @given(specs())
    @settings(deadline=None)
    def test_a_spec_reads_back_from_its_toml(self, model):
        assert spec_table.from_table(tables.parse(tables.dump(model))) == model

    @given(specs(), st.integers(1, 12))
    @settings(deadline=None)
    def test_ranks_together_hold_every_expert_once(self, model, ranks):
        placement = linear(model.experts, ranks)
        held = [weights.size(model, lambda layer, r=r: placement.held_by(r), lambda t: t.values) for r in range(ranks)]
        whole = sum(t.values for t in spec.tensors(model) if t.expert is not None)
        assert sum(sizes.get("experts", 0) for sizes in held) == whole

    def test_more_than_a_thousand_layers_or_experts_still_have_names_of_their_own(self):
        model = replace(MOE, layers=1001, moe=replace(MOE.moe, experts=1, top_k=1))
        found = [t for t in spec.tensors(model) if t.kind == "experts/down"]
        assert len({t.name for t in found}) == 1000 and found[-1].layer == 1000


class TestSeed:
    """The seed's model, as the design counts it: bfloat16, a rank with one expert a layer."""

    @pytest.fixture
    def sizes(self) -> dict[str, int]:
        model = spec_table.from_table(tables.parse(SEED61))
        placement = linear(model.experts, 16)
        return weights.size(model, lambda layer: placement.held_by(5), lambda t: BFLOAT16 * t.values)

    def test_attention_is_57_gb(self, sizes):
        assert round(sizes["attention"] / 1e9, 1) == 57.3

    def test_one_expert_a_layer_is_5_gb(self, sizes):
        assert round(sizes["experts"] / 1e9, 1) == 5.1

    def test_a_rank_is_64_gb_in_all(self, sizes):
        assert round(sum(sizes.values()) / 1e9, 1) == 64.1


class TestMistakes:
    """What does not fit together is refused by the name of the key."""

    @pytest.mark.parametrize(
        "old, new, words",
        [
            ("kv_heads = 128", "kv_heads = 3", "attention.kv_heads: 3 does not divide heads = 128"),
            ("kv_heads = 128", "kv_heads = 256", "attention.kv_heads"),
            ("head_dim = 128", "head_dim = 127", "attention.head_dim: 127 is odd"),
            ("top_k = 2", "top_k = 17", "moe.top_k: 17 is more than experts = 16"),
            ("layers = 3", "layers = [61]", "dense.layers: names a layer outside 0 to 60"),
            ("layers = 3", "layers = [-1]", "dense.layers"),
            ("layers = 3", "layers = -1", "dense.layers"),
            ("layers = 3", "layers = 62", "dense.layers"),
            ("layers = 3", "layers = true", "dense.layers"),
            ("context = 2048", "context = 1", "context: should be at least 2"),
            ("context = 2048", "context = 2048\neos = [49152]", "eos"),
            ("context = 2048", "context = 2048\neos = [-1]", "eos"),
            ("context = 2048", "context = 2048\neos = 2", "eos: should be a list of whole numbers"),
            ("context = 2048", "context = 2048\nnorm_eps = -1e-6", "norm_eps"),
            (
                "context = 2048",
                "context = 2048\nnorm_epsilon = 1e-6",
                "norm_epsilon: unknown key; did you mean norm_eps?",
            ),
            ("hidden = 7168", "hidden = 0", "hidden: should be at least 1"),
            ("hidden = 7168", "hidden = 7168.0", "hidden: should be a whole number"),
            ("experts = 16", "experts = 0", "moe.experts"),
            ("experts = 16", "expert = 16", "moe.expert: unknown key; did you mean experts?"),
            ("[moe]", "[mo]", "mo: unknown key; did you mean moe?"),
            ("head_dim = 128", "", "attention.head_dim: missing"),
            ('name = "seed61"', "", "name: missing"),
        ],
    )
    def test_a_misfit_is_named(self, old, new, words):
        assert words in refused(changed(old, new))

    def test_a_model_without_experts_needs_a_dense_table(self):
        assert "dense: missing" in refused(SEED61[: SEED61.index("[dense]")])

    def test_without_experts_the_dense_table_must_name_all_layers(self):
        """Three of 61 layers are said to be dense, and nothing says what the others are."""
        assert "moe" in refused(SEED61[: SEED61.index("[moe]")])

    def test_a_wrong_spec_file_is_an_input_error_that_names_it(self, tmp_path):
        path = spec_file(tmp_path / "s.toml")
        path.write_text(path.read_text().replace("top_k = 2", "top_k = 9"))
        with pytest.raises(InputError, match=r"spec .*s\.toml: moe\.top_k: 9 is more than"):
            spec_table.load(path)

    def test_a_missing_spec_file_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            spec_table.load(tmp_path / "s.toml")

    def test_a_spec_file_reads_as_the_spec(self, tmp_path):
        assert spec_table.load(spec_file(tmp_path / "s.toml")) == MOE
