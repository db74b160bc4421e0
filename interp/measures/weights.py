"""How the weights moved: by head in its QK and OV circuits, by MLP, and by parameter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import MeasureError
from interp.families import Parts, effective
from interp.families.parts import StackName
from interp.measures.arrays import (
    PREFIXES,
    Variable,
    dataset,
    strings,
    variable,
)
from interp.measures.findings import (
    TOP,
    Row,
    Table,
)
from interp.measures.measure import Context, Measure, Needs, Section
from interp.measures.spectra import DIRECTIONS, SpectralChange, size_and_directions, spectral_change
from interp.models import Policy

Factors = tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head d_model"]]


def product_norm(left: Float[Tensor, "head m k"], right: Float[Tensor, "head k n"]) -> Float[Tensor, " head"]:
    """Frobenius norm of left @ right for each head, without the product: ||A B||^2 = sum((A'A) * (B B'))."""
    grams = (left.mT @ left) * (right @ right.mT)
    return grams.sum((-2, -1)).clamp_min(0).sqrt()


def relative_change(
    base: Factors, tuned: Factors, size: Float[Tensor, " head"] | None = None
) -> Float[Tensor, " head"]:
    """||A_t B_t - A_b B_b|| / ||A_b B_b|| for each head.

    The difference is [A_t - A_b, A_b] [B_t; B_t - B_b], a product of thin factors that is exactly 0 where nothing
    changed and loses no digits where little did.

    Args:
        base: left and right factor of base's circuit.
        tuned: those of tuned's.
        size: ||A_b B_b||, where it is known.

    Returns:
        Relative Frobenius norm (no unit).
    """
    left = torch.cat([tuned[0] - base[0], base[0]], dim=-1)
    right = torch.cat([tuned[1], tuned[1] - base[1]], dim=-2)
    return product_norm(left, right) / (product_norm(*base) if size is None else size)


def qk_factors(parts: Parts, layer: int, stack: StackName | None = None) -> Factors:
    """W_Q and W_K^T of each head: its attention score is x W_Q W_K^T y^T, before biases and rotation."""
    group = parts.n_heads // parts.n_kv_heads
    keys = parts.W_K(layer, stack).detach().double().repeat_interleave(group, 0)
    return parts.W_Q(layer, stack).detach().double(), keys.mT


def ov_factors(parts: Parts, layer: int, stack: StackName | None = None) -> Factors:
    """W_V and W_O of each head: what it moves from a token into the residual is x W_V W_O."""
    group = parts.n_heads // parts.n_kv_heads
    values = parts.W_V(layer, stack).detach().double().repeat_interleave(group, 0)
    return values, parts.W_O(layer, stack).detach().double()


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.detach().double().pow(2).sum() for t in tensors]).sum().sqrt())


def _relative(base: list[Tensor], tuned: list[Tensor], size: float) -> float:
    """Norm of the change over `size`, base's norm."""
    change = _norm([t.detach().double() - b.detach().double().to(t.device) for b, t in zip(base, tuned, strict=True)])
    return change / size if size else (0.0 if change == 0 else float("inf"))


def oriented(module: nn.Module, weight: Float[Tensor, "a b"]) -> Float[Tensor, "output input"]:
    """A matrix with its output side first, float32 or better: a Linear stores it so, others the other way round."""
    promoted = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return promoted if isinstance(module, nn.Linear) else promoted.T


def _nothing() -> None:
    """Nothing is done between two weights."""


def weights(
    base: Policy, tuned: Policy, *, between: Callable[[], None] = _nothing, kept: dict[Any, Any] | None = None
) -> xr.Dataset:
    """How the weights changed: by head in its QK and OV circuit, by MLP, and by parameter.

    Relative Frobenius norm of the change of each. Circuits leave biases and rotary embedding out (Elhage et al. 2021);
    changes of biases show by parameter. An MLP is all its weights and biases as one vector. A parameter that was 0 and
    moved has an infinite relative change. Of each matrix also the effective rank of its change and the change's leading
    singular directions (see `interp.measures.spectra`), the left ones on the matrix's output side. An encoder-decoder's
    encoder, and its attention from decoder to encoder, have their circuits and MLPs with the prefixes `encoder_` and
    `cross_`.

    Args:
        base: base model.
        tuned: tuned model.
        between: called after each layer and each parameter, where what was read may leave memory again.
        kept: norms and directions of base's weights from an earlier call with the same `base`, which are taken from
            here and put here.

    Raises:
        MeasureError: the two models differ in shape.
    """
    b, t = base.parts, tuned.parts
    shapes = [
        {name: p[_rows(policy, name)].shape for name, p in policy.model.named_parameters()} for policy in (base, tuned)
    ]
    if shapes[0] != shapes[1]:
        raise MeasureError("base and tuned differ in the shapes of their weights; leave the measure weights out")
    once = partial(_once, kept)
    changes: dict[str, Variable] = {}
    for stack in b.stacks:
        changes |= _of_stack(base, t, stack, between, once)
    params = []
    for name in shapes[0]:
        first = [_weight(base, name)]
        params.append(_relative(first, [_weight(tuned, name)], once(("parameter", name), partial(_norm, first))))
        between()
    return dataset(
        {
            **changes,
            "param_change": variable("param", params, "relative change of the parameter", "1"),
            **_spectral_variables(base, tuned, between, once),
        },
        layer=range(b.n_layers),
        encoder_layer=range(b.n_encoder_layers),
        head=range(b.n_heads),
        param=strings(list(shapes[0])),
        weight_direction=range(DIRECTIONS),
    )


def _of_stack(
    base: Policy, tuned: Parts, stack: StackName | None, between: Callable[[], None], once: Callable[..., Any]
) -> dict[str, Variable]:
    """Change of the circuits and MLPs of one stack's blocks; attention to an encoder has no MLP of its own."""
    parts, prefix = base.parts, PREFIXES[stack]
    layers = range(parts.n_encoder_layers if stack == "encoder" else parts.n_layers)
    circuits: dict[str, list[Tensor]] = {"qk": [], "ov": []}
    mlp = []
    for layer in layers:
        for name, factors in (("qk", qk_factors), ("ov", ov_factors)):
            first = factors(parts, layer, stack)
            size = once((name, layer, stack), partial(product_norm, *first))
            circuits[name].append(relative_change(first, _to(factors(tuned, layer, stack), base), size).cpu())
        if stack != "cross":
            weights_of = parts.mlp_weights(layer, stack)
            size = once(("mlp", layer, stack), partial(_norm, weights_of))
            mlp.append(_relative(weights_of, tuned.mlp_weights(layer, stack), size))
        between()
    dim = "encoder_layer" if stack == "encoder" else "layer"
    words = {"": "", "encoder_": " of the encoder", "cross_": " of the attention to the encoder"}[prefix]
    made = {
        f"{prefix}{name}_change": variable(
            f"{dim} head", torch.stack(values), f"relative change of {product}{words}", "1"
        )
        for (name, values), product in zip(circuits.items(), ("W_Q W_K^T", "W_V W_O"), strict=True)
    }
    if mlp:
        made[f"{prefix}mlp_change"] = variable(dim, mlp, f"relative change of the MLP's weights{words}", "1")
    return made


def _rows(policy: Policy, name: str) -> slice:
    """The rows of a parameter that are compared: of the vocabulary's, those of the shared tokens."""
    owner = policy.model.get_submodule(name.rpartition(".")[0])
    return slice(policy.parts.vocab if owner in (policy.parts.embed, policy.parts.readout) else None)


def _weight(policy: Policy, name: str) -> Tensor:
    return effective(policy.model, name)[_rows(policy, name)]


def _once(kept: dict[Any, Any] | None, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives of base, computed once where such things are kept."""
    if kept is None:
        return make()
    if ("weights", key) not in kept:
        kept["weights", key] = make()
    return kept["weights", key]


def _spectral_variables(
    base: Policy, tuned: Policy, between: Callable[[], None], once: Callable[..., Any]
) -> dict[str, Variable]:
    """Effective rank and singular directions of each parameter's change, NaN for what is no matrix."""
    ranks, full, sizes, overlaps = [], [], [], []
    nothing = SpectralChange(float("nan"), *torch.full((2, DIRECTIONS), torch.nan, dtype=torch.float64))
    for name, _ in base.model.named_parameters():
        weight, found = _weight(base, name), nothing
        if weight.ndim == 2:
            module = base.model.get_submodule(name.rpartition(".")[0])
            own = oriented(module, weight)
            of_base = partial(once, ("directions", name), partial(size_and_directions, own))
            found = spectral_change(own, oriented(module, _weight(tuned, name)).to(weight.device), of_base)
        ranks.append(found.effective_rank)
        full.append(min(weight.shape) if weight.ndim == 2 else float("nan"))
        sizes.append(found.sizes)
        overlaps.append(found.overlaps)
        between()
    dims = "param weight_direction"
    return {
        "effective_rank": variable("param", ranks, "effective rank of the change (Roy and Vetterli 2007)", "1"),
        "full_rank": variable("param", full, "largest rank that the change could have", "1"),
        "singular_change": variable(
            dims, torch.stack(sizes), "singular value of the change over the Frobenius norm of base's matrix", "1"
        ),
        "singular_overlap": variable(
            dims,
            torch.stack(overlaps),
            f"share of the change's left singular vector in the span of base's leading {DIRECTIONS}",
            "1",
        ),
    }


def _to(factors: Factors, policy: Policy) -> Factors:
    return factors[0].to(policy.device), factors[1].to(policy.device)


def of_models(context: Context) -> xr.Dataset:
    """What `weights` says of the two models of a comparison."""
    in_memory = context.settings.in_memory
    return weights(context.base, context.tuned, between=lambda: in_memory.only(None), kept=context.of_base)


def findings(table: Table) -> Iterator[Row]:
    """The heads, MLPs and matrices whose weights moved most."""
    if "ov_change" in table.data:
        yield from _circuits(table)
    if "effective_rank" in table.data:
        yield from _ranks(table)


def _circuits(table: Table) -> Iterator[Row]:
    """The heads and MLPs whose weights moved most."""
    stacks = {"": "", "encoder_": " of the encoder", "cross_": " of the attention to the encoder"}
    kinds = (("ov_change", "OV circuit"), ("qk_change", "QK circuit"), ("mlp_change", "MLP"))
    for (prefix, where), (kind, words) in itertools.product(stacks.items(), kinds):
        if f"{prefix}{kind}" in table.data:
            yield from _largest(table, f"{prefix}{kind}", where, words)


def _largest(table: Table, name: str, where: str, words: str) -> Iterator[Row]:
    """The heads or MLPs of one stack whose weights moved most."""
    values = table.data[name].values.reshape(-1)

    def most(run: xr.Dataset) -> float:
        return float(run[name].max())

    def one(index: int) -> Callable[[xr.Dataset], float]:
        return lambda run: float(run[name].values.reshape(-1)[index])

    for index in np.argsort(-values, kind="stable")[:TOP]:
        if values[index] > 0:
            place = f"L{index}" if "head" not in table.data[name].dims else _head(table.data, int(index))
            finding = f"{place}{where}: relative change of its {words}"
            yield table.plain("weights", finding, one(int(index)), most)
    if not (values > 0).any():
        yield table.plain("weights", f"no {words}{where} changed", lambda _: 0.0, most)


def _head(data: xr.Dataset, index: int) -> str:
    heads = data.sizes["head"]
    return f"L{index // heads}H{index % heads}"


def _ranks(table: Table) -> Iterator[Row]:
    """Of the matrices that moved most: the effective rank of the change, and whether it lies in base's directions."""
    data = table.data
    moved = np.where(np.isfinite(data["effective_rank"].values), data["param_change"].values, 0)
    for index in np.argsort(-moved, kind="stable")[:TOP]:
        if moved[index] == 0:
            continue
        overlap, full = float(data["singular_overlap"].values[index, 0]), int(data["full_rank"].values[index])
        what = f"of {full}; relative change {moved[index]:.2g}; {overlap:.0%} of its first direction in base's first 8"

        def rank(run: xr.Dataset, index: int = int(index)) -> float:
            return float(run["effective_rank"].values[index])

        name = data["param"].values[index]
        yield table.plain("weights", f"{name}: effective rank of its change ({what})", rank, rank)


WEIGHTS = Measure(
    name="weights",
    title="Weights",
    meaning=(
        "How far the weights moved: by head in its QK and OV circuit, by MLP and by parameter, and in how many "
        "directions."
    ),
    formula=(
        "||W_tuned - W_base|| / ||W_base||, Frobenius; effective rank: exp of the entropy of the change's singular "
        "values"
    ),
    source="Elhage et al. 2021; Roy and Vetterli 2007",
    units="1",
    misleads="It needs no prompt, and says how far weights moved, not whether that matters.",
    group="Weights",
    needs=Needs(weights=True),
    arrays=(
        "qk_change",
        "encoder_qk_change",
        "encoder_ov_change",
        "encoder_mlp_change",
        "cross_qk_change",
        "cross_ov_change",
        "ov_change",
        "mlp_change",
        "param_change",
        "effective_rank",
        "full_rank",
        "singular_change",
        "singular_overlap",
    ),
    whole=of_models,
    findings=findings,
    sections=(
        Section(
            "weights",
            "Which weights moved",
            "Weights",
            alt="Heat maps of the relative change of every head's QK and OV circuit, and bars of every MLP's.",
            caption=(
                "Frobenius norm of the change over that of base. It needs no prompt, and says how far weights "
                "moved, not whether that matters."
            ),
            readings=(("weights", "relative change of its"),),
        ),
        Section(
            "singular_directions",
            "In how many directions they moved",
            "Directions",
            alt=(
                "Bars of the effective rank of each matrix's change, and heat maps of its singular values and their "
                "overlap."
            ),
            caption=(
                "The matrices with the largest relative change. Effective rank: in about how many directions the "
                "change goes, exp of the entropy of its singular values. Middle: size of each direction over the "
                "norm of base's matrix. Right: how much of it lies in base's own eight leading directions; 0 is a "
                "new direction."
            ),
            readings=(("weights", "effective rank"),),
        ),
    ),
)
