"""Products that were measured: read off a table, and what a table has to be."""

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.errors import JobError
from hpcmoe.predict import cost, products
from hpcmoe.predict.machine import Device, Hardware, Links, Products, load
from hpcmoe.spec import Attention, ModelSpec, Moe

TABLE = Products((1, 4, 16), (100, 10_000), (1e-6, 5e-5, 2e-6, 8e-5, 4e-6, 3.2e-4))
DEVICE = Device(1e12, 1e9, 1e12, products=TABLE)


@pytest.mark.parametrize("row, rows", list(enumerate(TABLE.rows)))
@pytest.mark.parametrize("column, values", list(enumerate(TABLE.values)))
def test_sizes_of_the_table_take_what_it_says(row, rows, column, values):
    assert products.seconds(TABLE, np.array([float(rows)]), values) == pytest.approx(TABLE.seconds[2 * row + column])


@given(st.floats(1, 16), st.floats(100, 10_000))
def test_between_sizes_a_value_takes_neither_more_nor_less_than_around_them(rows, values):
    each = np.array(TABLE.seconds).reshape(3, 2) / TABLE.values
    found = float(products.seconds(TABLE, np.array(rows), values)) / values
    around = each[[np.searchsorted(TABLE.rows, rows, "right") - 1, np.searchsorted(TABLE.rows, rows)]]
    assert around.min() * (1 - 1e-9) <= found <= around.max() * (1 + 1e-9)


def test_beyond_the_table_rows_and_values_take_their_share():
    def at(rows, values):
        return float(products.seconds(TABLE, np.array(rows), values))
    assert at(32.0, 100) == pytest.approx(2 * at(16.0, 100))
    assert at(4.0, 20_000) == pytest.approx(2 * at(4.0, 10_000))
    assert at(4.0, 50) == pytest.approx(at(4.0, 100) / 2)
    assert at(0.25, 100) == pytest.approx(at(1.0, 100) / 4) and at(0.0, 100) == 0


def test_a_table_of_one_size_is_scaled_from():
    one = Products((2,), (100,), (1e-6,))
    assert products.seconds(one, np.array([1.0, 2.0, 4.0]), 200).tolist() == pytest.approx([2e-6, 2e-6, 4e-6])


def test_a_measured_product_takes_that_long_and_its_rows_bytes_beside():
    work = cost.product("x", DEVICE, 4, 10_000, 20, fixed=1e-3)
    assert work.seconds == pytest.approx(8e-5 + 2 * 4 * 20 / 1e9 + 1e-3)
    assert (work.bytes, work.flops) == (2 * 10_000 + 2 * 4 * 20, 2 * 4 * 10_000)
    assert work.by_overhead == 1e-3 and not work.by_flops


def test_experts_are_products_of_their_rows():
    spec = ModelSpec("small", 1, 8, 16, 64, Attention(2, 2, 4), None, Moe(2, 1, 4))
    hw = Hardware("some", DEVICE, Links(1, 1e9, 1e8))
    both = cost.experts(spec, hw, 1, np.array([3.0, 0.0]))
    one = cost.product("expert", DEVICE, 3, 96, 28)
    assert both[:, 0].tolist() == pytest.approx([one.bytes, one.flops, *one.bounds, one.launch])
    assert not both[:, 1].any()


@pytest.mark.parametrize("change, says", [
    ({"rows": (4, 1, 16)}, "device.products.rows: should be whole numbers above 0 in ascending order"),
    ({"values": (0, 100)}, "device.products.values: should be whole numbers above 0 in ascending order"),
    ({"seconds": (1e-6, 2e-6)}, "device.products.seconds: should be 6 numbers above 0, 3 rows times 2 matrices, not 2"),
    ({"seconds": (1e-9,) * 6}, "is less than rate and flops let them take"),
    ({"seconds": "fast"}, "device.products.seconds: should be a list of numbers, not 'fast'")])
def test_what_is_no_table_is_said(change, says, tmp_path):
    table = {"rows": TABLE.rows, "values": TABLE.values, "seconds": TABLE.seconds} | change
    path = tmp_path / "odd.toml"
    path.write_text(tomli_w.dumps({
        "name": "odd", "device": {"flops": 1e12, "rate": 1e9, "memory": 1e12, "products": table},
        "links": {"ranks_per_node": 1, "near_rate": 1e9, "far_rate": 1e9}}))
    with pytest.raises(JobError) as raised:
        load(str(path))
    assert says in str(raised.value) and str(path) in str(raised.value)
