"""TOML tables as dataclasses: built, refused by name, and written back."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import tables
from hpcmoe.tables import Bad, key

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@dataclasses.dataclass(frozen=True)
class Inner:
    flag: bool = key(False, help="a flag")
    words: str = key("", help="words")


@dataclasses.dataclass(frozen=True)
class Outer:
    whole: int = key(help="a whole number")
    inner: Inner = key(Inner(), help="a table")
    some: Inner | None = key(None, help="a table or nothing")
    numbers: tuple[int, ...] = key((), help="a list")
    either: int | tuple[int, ...] = key(0, help="a number or a list", least=0)
    real: float = key(0.0, help="a number", least=-1e300, most=1e300)


INNER = st.builds(Inner, st.booleans(), WORDS)
WHOLE = st.integers(-(2**63), 2**63 - 1)
OUTER = st.builds(
    Outer,
    WHOLE,
    INNER,
    st.none() | INNER,
    st.lists(WHOLE).map(tuple),
    st.integers(0, 2**63 - 1) | st.lists(WHOLE).map(tuple),
    st.floats(-1e300, 1e300),
)


class TestTables:
    """TOML tables as dataclasses, whatever is in them."""

    @given(OUTER)
    @settings(max_examples=100)
    def test_what_is_dumped_builds_the_same(self, value):
        assert tables.build(Outer, tables.parse(tables.dump(value))) == value

    @given(
        st.dictionaries(
            st.sampled_from(["whole", "inner", "some", "numbers", "either", "real", "wholes"]),
            st.recursive(
                st.none() | st.booleans() | WHOLE | st.floats() | WORDS,
                lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["flag", "words", "x"]), v),
            ),
        )
    )
    @settings(max_examples=200)
    def test_any_table_is_built_or_refused_by_name(self, table):
        try:
            found = tables.build(Outer, table)
        except Bad as bad:
            assert str(bad).split(".")[0].split(":")[0] in {*table, "whole"}
        else:
            assert type(found.whole) is int and type(found.real) is float and type(found.inner) is Inner

    @pytest.mark.parametrize("value", [[1, True], [1.0], ["1"], [[1]], True, 1.0, "1", {}])
    def test_a_number_or_a_list_is_nothing_else(self, value):
        with pytest.raises(Bad, match="either: should be a whole number or a list of whole numbers"):
            tables.build(Outer, {"whole": 1, "either": value})

    def test_a_nested_key_has_a_dotted_path(self):
        with pytest.raises(Bad, match=r"^inner\.flag: should be true or false, not 1"):
            tables.build(Outer, {"whole": 1, "inner": {"flag": 1}})

    def test_a_value_over_the_most_is_refused(self):
        with pytest.raises(Bad, match="real: should be at most"):
            tables.build(Outer, {"whole": 1, "real": 1e301})
