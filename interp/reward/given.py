"""The reward model that a reading is of: a loaded one, or where it lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from interp.errors import MeasureError
from interp.models import RewardModel, as_reward
from interp.models.pretrained import load_both
from interp.models.source import describe_source
from interp.pair import pair_at

Given = RewardModel | str | os.PathLike[str]
"""A reward model, its folder or its hub id."""


def given_reward(model: Given, labels: Sequence[str] | str | None = None) -> RewardModel:
    """The reward model, loaded where a folder or id is given: its probability, or the logit of a score without bounds.

    Args:
        model: a reward model, its folder or its hub id.
        labels: what will be read of it; the first of them becomes the label of a model that is loaded here.

    Raises:
        MeasureError: it is something else, or a folder or id of a model of several labels of which none is named.
        LoadError: it cannot be loaded.
    """
    if isinstance(model, RewardModel) or pair_at(model) is not None:
        return as_reward(model)
    if not isinstance(model, (str, os.PathLike)):
        raise MeasureError(
            f"a reward model is a RewardModel, its folder or its hub id, not a {type(model).__name__}; load it with"
            " RewardModel.load"
        )
    module, tokenizer = load_both(model, None, revision=None, trust_remote_code=False, head="classifier")
    config: Any = module.config
    names = [str(name) for _, name in sorted(config.id2label.items())]
    if labels is None and len(names) > 1:
        raise MeasureError(
            f"{os.fspath(model)} has {len(names)} labels and none is named; pass"
            f" RewardModel.load({os.fspath(model)!r}, label=...), one of {', '.join(names)}"
        )
    wanted = [labels] if isinstance(labels, str) else list(names if labels is None else labels)
    label = wanted[0] if wanted and wanted[0] in names else names[0]  # a label that it lacks is refused when it is read
    scalar = getattr(config, "problem_type", None) == "regression"
    found = RewardModel.load(module, tokenizer=tokenizer, label=label, output="logit" if scalar else "probability")
    return replace(found, description={**describe_source(model), "label": label, "output": found.output})
