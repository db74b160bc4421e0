"""Direct attribution of a reward model's logit: what each component and head writes into it where it is read.

With the norms' scales frozen, the last quantity that is linear in the residual is an exact sum over components
(`interp.decomposition`). For a causal classifier that is the logit. Where a pooler with a non-linearity comes between
(BERT, RoBERTa, DistilBERT), the pooler's input is, and each part is multiplied by the slope of the logit there; by how
much the sum then misses the logit is reported (nothing for a ReLU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.decomposition import (
    Directions,
    attribute_heads,
    attribute_terms,
    decomposition_sites,
    directions,
    head_sites,
    residual_sites,
)
from interp.hooks import Site, patch
from interp.measures.arrays import dataset, strings, variable
from interp.models import RewardModel, RewardTrace
from interp.models.source import source_name
from interp.progress import Progress, no_progress
from interp.result import Result
from interp.reward.agreement import about_texts, agreement, agreement_in_short, patching_table
from interp.reward.fixed_effects import spearman
from interp.reward.texts import RewardLike, Texts, as_reward, check_finite, chosen_labels, read_texts
from interp.stats import bootstrap_mean

_SHORT = {"attn_out": "attn", "mlp_out": "mlp"}


@dataclass(frozen=True, eq=False, repr=False)
class DirectAttribution(Result):
    """Direct attribution of a logit by component and by head.

    Attributes:
        dataset: `component_attribution` [prompt, component, label], `head_attribution` [prompt, layer, head, label],
            `completeness_error` and `linearisation_error` [prompt, label]; with patching `patching_effect` [prompt,
            component, label] and `patching_rank_correlation` [prompt, label].
    """

    kind: ClassVar[str] = "reward_direct_attribution"
    title: ClassVar[str] = "Direct attribution of a reward"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(map(str, self.dataset["label"].values))

    def summary(self) -> pd.DataFrame:
        """One row a component and label, the largest in the mean over texts of its size first.

        Columns: `label`, `component`, `attribution` (mean over texts) with `attribution_low` and `attribution_high`
        (95 %, from 8 texts on), `size` (mean absolute value) and, where components were taken out, `patching_effect`
        (mean). `attrs["patching"]` of the frame says how far the two agree, a sentence a label.
        """
        data, rows = self.dataset, []
        for label in self.labels:
            for component in data["component"].values:
                cell = data.sel(label=label, component=component)
                mean, low, high = bootstrap_mean(cell["component_attribution"].values)
                row = {"label": label, "component": str(component), "attribution": mean}
                row |= {"attribution_low": low, "attribution_high": high}
                row["size"] = float(np.abs(cell["component_attribution"].values).mean())
                if "patching_effect" in data:
                    row["patching_effect"] = float(cell["patching_effect"].values.mean())
                rows.append(row)
        table = pd.DataFrame(rows).sort_values("size", ascending=False, kind="stable", ignore_index=True)
        table.attrs["patching"] = self.beside_patching()
        return table

    def patching(self) -> pd.DataFrame:
        """How far the attribution agrees with patching over components, as `Attribution.patching` does over tokens."""
        return patching_table(self.dataset)

    def beside_patching(self) -> list[str]:
        """The same in words, a line a label."""
        sentences = [agreement(self.labels, row, "component") for row in self.patching().itertuples()]
        return sentences or ["rank correlation with patching: not measured (patching=True of direct_attribution)"]

    def headline(self) -> str:
        """The model, and how many texts and labels."""
        counted = about_texts(self.dataset.sizes["prompt"], self.labels)
        return f"{self.dataset.attrs['model']}, direct attribution of the logit: {counted}, logits."

    def notes(self) -> list[str]:
        """How far the attribution agrees with taking components out."""
        return [*agreement_in_short(self.patching(), self.beside_patching()), 'by head: ["head_attribution"]']


def direct_attribution(
    model: RewardLike,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | str | None = None,
    batch_size: int = 32,
    patching: bool = True,
    progress: Progress | None = None,
) -> DirectAttribution:
    """What each component and each head writes straight into a label's logit.

    Beside it stands what happens to the logit when the component is taken out (its output at every position replaced by
    its mean over all tokens of these texts), and the rank correlation of the two over components: an attribution says
    what is written at the end, not what the score depends on, and on published reward models the two agree little.

    Args:
        model: a reward model, its folder or its hub id.
        texts: the texts.
        labels: the labels; None is the model's own, "all" every one.
        batch_size: texts a pass.
        patching: also take each component out.
        progress: told of the "components" that are taken out.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: an unknown label.
        InterpError: a logit is not finite.
    """
    model = as_reward(model, labels)
    named = chosen_labels(model, labels)
    read = read_texts(model, texts)
    columns = [model.labels.index(label) for label in named]
    chunks = [list(range(start, min(start + batch_size, len(read)))) for start in range(0, len(read), batch_size)]
    parts = model.parts
    sites = sorted({*decomposition_sites(parts), *head_sites(parts)})
    found = [_of_batch(model.trace(read.batch(rows), sites), columns) for rows in chunks]
    terms, heads, bias, logits, complete, linear = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    check_finite(logits, read.texts, "logit")
    name = "direct attribution of the logit"
    variables = {
        "component_attribution": variable("prompt component label", terms, name, "logits"),
        "head_attribution": variable("prompt layer head label", heads, f"{name} by head", "logits"),
        "attn_bias_attribution": variable("prompt layer label", bias, f"{name} of b_O", "logits"),
        "logit": variable("prompt label", logits, "logit", "logits"),
        "completeness_error": variable(
            "prompt label", complete, "|sum - what is linear in the residual|, times its slope", "logits"
        ),
        "linearisation_error": variable("prompt label", linear, "|sum - logit|", "logits"),
        "text": variable("prompt", strings(read.texts), "text"),
    }
    if patching:
        effect = _taken_out(model, read, chunks, columns, logits, progress or no_progress)
        agree = [[spearman(terms[i, :-1, j], effect[i, :, j]) for j in range(len(columns))] for i in range(len(read))]
        padded = np.concatenate([effect, np.full((len(read), 1, len(columns)), np.nan)], axis=1)
        variables["patching_effect"] = variable(
            "prompt component label", padded, "logit less the logit with the component at its mean", "logits"
        )
        variables["patching_rank_correlation"] = variable(
            "prompt label", np.array(agree), "Spearman of direct attribution and patching over components", "1"
        )
    data = dataset(
        variables, component=component_names(model), layer=range(parts.n_layers), head=range(parts.n_heads),
        label=list(named),
    )  # fmt: skip
    return DirectAttribution(data.assign_attrs(model=source_name(dict(model.description))))


def component_names(model: RewardModel) -> list[str]:
    """Labels of the dim `component`: embeddings, attention and MLP of each layer, and `bias`."""
    named = (
        site.name if site.layer is None else f"L{site.layer}.{_SHORT[site.name]}"
        for site in residual_sites(model.parts)
    )
    return [*named, "bias"]


def _of_batch(trace: RewardTrace, columns: Sequence[int]) -> tuple[Tensor, ...]:
    """Terms, heads, attention biases, logits, completeness and linearisation error; labels last, on the CPU."""
    parts = trace.model.parts

    def read(site: Site) -> Tensor:
        values = trace[site].expand(len(trace.logits), *trace[site].shape[1:])
        return trace.read(site).double() if len(trace[site]) == len(trace.logits) else _at(trace, values)

    weight, bias = (None if each is None else each.detach().double() for each in parts.unembedding())
    assert weight is not None
    slopes, linear, logits, at_zero = _slopes(trace, columns)
    by_label = []
    for index, slope in enumerate(slopes):
        way = directions(parts, read, slope @ weight.T)
        constant = way.constant + (0 if bias is None else slope @ bias) + at_zero[index]
        way = Directions(way.sites, constant)
        terms = torch.cat([attribute_terms(parts, read, way), constant[:, None]], dim=1)
        each = [attribute_heads(parts, read, way, layer) for layer in range(parts.n_layers)]
        total = terms.sum(1)
        by_label.append(
            (
                terms,
                torch.stack([heads for heads, _ in each], dim=1),
                torch.stack([rest for _, rest in each], dim=1),
                logits[:, index],
                (total - at_zero[index] - (slope * linear).sum(1)).abs(),
                (total - logits[:, index]).abs(),
            )
        )
    return tuple(torch.stack(each, dim=-1).cpu() for each in zip(*by_label, strict=True))


def _at(trace: RewardTrace, values: Tensor) -> Tensor:
    """A site that is the same for every row (a learned position embedding), at the token that is read."""
    from interp.models.running import at_read_token

    return at_read_token(trace.model.parts, trace.batch, values).double()


def _slopes(
    trace: RewardTrace, columns: Sequence[int]
) -> tuple[
    list[Float[Tensor, "batch out"]], Float[Tensor, "batch out"], Float[Tensor, "batch label"], Float[Tensor, " label"]
]:
    """For each label the gradient of its logit by what is linear in the residual; that itself; the logits; those at 0.

    The logits at 0 are the biases behind a pooler. With them the sum is exact for a ReLU, which is homogeneous.
    """
    parts = trace.model.parts
    residual = trace.read(Site("resid_post", parts.n_layers - 1))
    with torch.no_grad():
        linear = parts.linear_output(residual)
    with torch.enable_grad():
        leaf = linear.detach().requires_grad_(True)
        logits = parts.head.after(parts.model, leaf) if parts.head.after else leaf * 1.0
        slopes = [
            torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=True)[0].double() for column in columns
        ]
    with torch.no_grad():
        zero = torch.zeros_like(linear[:1])
        at_zero = (parts.head.after(parts.model, zero) if parts.head.after else zero)[0]
    return slopes, linear.double(), logits.detach()[:, list(columns)].double(), at_zero[list(columns)].double()


def _taken_out(
    model: RewardModel,
    texts: Texts,
    chunks: list[list[int]],
    columns: Sequence[int],
    logits: np.ndarray,
    progress: Progress,
) -> np.ndarray:
    """For each component, the logits less those with the component at its mean; [prompt, component, label]."""
    sites = residual_sites(model.parts)
    total, count = {site: torch.zeros(1, dtype=torch.float64) for site in sites}, 0
    for rows in chunks:
        trace = model.trace(texts.batch(rows), sites)
        mask = trace.batch.attention_mask
        count += int(mask.sum())
        for site in sites:
            values = trace[site].expand(len(mask), -1, -1)
            total[site] = total[site].to(values.device) + values[mask].double().sum(0)
    out = np.empty((len(texts), len(sites), len(columns)))
    for index, site in enumerate(sites):
        progress("components", index, len(sites))
        mean = total[site] / count

        def at_mean(value: Tensor, mean: Tensor = mean) -> Tensor:
            return mean.to(value).expand_as(value)

        with patch(model.parts, {site: at_mean}):
            for rows in chunks:
                out[rows, index] = (
                    logits[rows] - model.trace(texts.batch(rows)).logits[:, list(columns)].double().cpu().numpy()
                )
    progress("components", len(sites), len(sites))
    return out
