"""Batches put together in place, against xarray's own concatenation."""

import numpy as np
import pytest
import xarray as xr

from interp.measures.arrays import dataset, strings, variable
from interp.measures.engine import Collector


def batch(rows, width, steps, seed):
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(9)], dtype=object)
    return dataset(
        {
            "by_prompt": variable("prompt model", rng.normal(size=(rows, 2)), "one", "nats"),
            "by_step": variable("prompt step", rng.normal(size=(rows, steps)), "two", "nats"),
            "by_pos": variable("prompt model pos", rng.normal(size=(rows, 2, width)), "three", "nats"),
            "top": variable("prompt pos", strings(rng.choice(words, (rows, width))), "four"),
        },
        pos=range(width),
        step=range(steps),
    )


@pytest.mark.parametrize("widths", [(4, 7, 2), (7, 4, 4), (3, 3, 9)])
def test_against_xarray(widths):
    batches = [batch(rows, width, 1 + width // 3, width) for rows, width in zip((5, 5, 2), widths, strict=True)]
    collector = Collector(12)
    for first, each in zip((0, 5, 10), batches, strict=True):
        collector.add(first, each)
    got = collector.dataset()
    expected = xr.concat(batches, dim="prompt", join="outer")
    assert set(got.variables) == set(expected.variables)
    for name in ("by_prompt", "by_step"):
        xr.testing.assert_identical(got[name], expected[name])
    np.testing.assert_array_equal(got["by_pos"], expected["by_pos"].astype(np.float32))
    assert got["by_pos"].dtype == np.float32 and got["by_step"].dtype == np.float64
    assert (got["top"].values == expected["top"].fillna("").values).all()
    assert got["top"].attrs == {"long_name": "four", "units": ""}


def test_the_order_in_which_batches_come_does_not_matter():
    batches = [batch(3, width, 2, width) for width in (4, 6, 5)]
    one, other = Collector(9), Collector(9)
    for place in (0, 1, 2):
        one.add(3 * place, batches[place])
    for place in (2, 0, 1):
        other.add(3 * place, batches[place])
    xr.testing.assert_identical(one.dataset(), other.dataset())


def test_equal_strings_are_one_object():
    collector = Collector(600)
    word = "".join(["a", "token"])
    for first in range(0, 600, 3):
        collector.add(first, dataset({"top": variable("prompt", strings([word] * 3), "top")}))
    values = collector.dataset()["top"].values
    assert len({id(value) for value in values}) == 1


def test_an_array_without_prompts_is_refused():
    with pytest.raises(ValueError, match="the first dim of a measure is prompt"):
        Collector(3).add(0, dataset({"odd": variable("layer", np.zeros(2), "odd")}))
