"""What joins the reward to the policy: the implicit reward and the token join."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from interp.reward.joins import over_optimisation_of, probes_of, records
from interp.summary.table import Row, Table


def implicit_reward(table: Table) -> Iterator[Row]:
    """Slope, rank correlation and effective beta of the policy's shift against the reward."""
    reading = "implicit reward"
    yield table.fitted(
        reading,
        "log-ratio per unit of reward, within prompts (1 / effective beta)",
        "implicit_slope",
        "nats per reward",
        permuted="implicit_null_slope",
    )
    yield table.fitted(
        reading, "the same, base's samples alone", "implicit_slope_by_source", "nats per reward", source="base"
    )
    yield table.fitted(
        reading,
        "Spearman of reward and log-ratio within prompts",
        "implicit_spearman",
        "1",
        mean="_mean",
        permuted="implicit_null_spearman",
    )
    if np.isfinite(float(table.data["implicit_effective_beta"])):
        yield table.fitted(reading, "effective beta", "implicit_effective_beta", "reward per nat", ranked=False)
    said = "variance of the log-ratio within prompts that reward and length explain"
    yield table.fitted(reading, said, "implicit_explained", "share", bounds=False, ranked=False)


def token_join(table: Table) -> Iterator[Row]:
    """Rank correlations of the reward's token attribution and what the tuning did to the tokens."""
    for name, said in (
        ("signed", "attribution and log-ratio"),
        ("size", "|attribution| and |log-ratio|"),
        ("size_given_surprise", "|attribution| and |log-ratio|, base's surprise held fixed"),
    ):
        yield table.fitted(
            "token join",
            f"Spearman of a token's {said}, within texts",
            f"join_{name}_spearman",
            "1",
            mean="_mean",
            permuted=f"join_null_{name}_spearman",
        )


def over_training(table: Table) -> Iterator[Row]:
    """What the checkpoints of the training show: over-optimisation and probes, in their own words."""
    kinds = (("over_optimisation", over_optimisation_of), ("probes", probes_of))
    for name, of in kinds:
        if name in records(table.data):
            found = of(table.data).summary().to_dict("records")
            yield from (table.given(record) for record in found if np.isfinite(record["estimate"]))
