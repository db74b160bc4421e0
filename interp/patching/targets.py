"""What is patched: sites, heads or neurons in them, and positions, and how a user names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import MeasureError
from interp.families import Parts
from interp.families.parts import StackName
from interp.hooks import Site, has_site
from interp.prompts import Batch

HEADS = ("z", "result", "q", "pattern")
KV_HEADS = ("k", "v")
NEURONS = ("mlp_post",)
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
NAMES = (*STREAM, *HEADS, *KV_HEADS, *NEURONS)

Position = Literal["all", "prompt"] | int | tuple[int, ...]
"""`all` tokens, those of the `prompt`, or tokens by number: from 0 at a prompt's first, or from -1 at its last."""

BY_TOKEN = ("each", "each_from_end")
"""Words for a map by token: every token by itself, aligned at the prompts' first token or at their last."""

SiteKey = tuple[str, int] | tuple[str, int, StackName | None] | Site
Sites = str | Site | Mapping[SiteKey, Any] | Sequence["str | Site | Mapping[SiteKey, Any]"]


@dataclass(frozen=True, order=True)
class Target:
    """A site, or some units of one.

    Attributes:
        site: where.
        units: heads (`z`, `result`, `q`, `pattern`), key-value heads (`k`, `v`) or neurons (`mlp_post`) that are
            patched; None is the whole site.
    """

    site: Site
    units: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.units is None:
            return str(self.site)
        sign = "N" if self.site.name in NEURONS else "H"
        stack = f"{self.site.stack}." if self.site.stack else ""
        return f"{stack}L{self.site.layer}.{self.site.name}.{sign}" + "+".join(map(str, self.units))


@dataclass(frozen=True)
class Intervention:
    """Targets that are patched together, at the same positions.

    Attributes:
        targets: what is patched.
        position: at which tokens.
    """

    targets: tuple[Target, ...]
    position: Position = "all"

    def __str__(self) -> str:
        where = "" if self.position in ("all", "prompt") else f" at {self.position}"
        return " & ".join(map(str, self.targets)) + where

    @property
    def size(self) -> int:
        """How many sites, or units of sites, are patched."""
        return sum(1 if target.units is None else len(target.units) for target in self.targets)


def unit_count(parts: Parts, site: Site) -> int | None:
    """How many heads, key-value heads or neurons a site has; None of a residual or a sublayer's output."""
    if site.name in HEADS:
        return parts.n_heads
    if site.name in KV_HEADS:
        return parts.n_kv_heads
    if site.name in NEURONS:
        assert site.layer is not None
        return int(parts.W_down(site.layer, site.stack)[0].shape[0])
    return None


def interventions(parts: Parts, sites: Any, positions: Any, width: int) -> list[Intervention]:
    """The interventions that `sites` and `positions` name, in order.

    A name stands for all its places, one by one: "z" for every head of every layer, "mlp_out" for every layer's, in
    every stack that has it. A `Site` stands for itself, or for its heads one by one. A mapping, as
    {("z", 10): [4, 9], ("mlp_out", 3): None}, is one set that is patched together.

    Args:
        parts: the model.
        sites: one of these, or a list of them.
        positions: "all", "prompt", "last", numbers (one set of tokens), or every token by itself: "each", counted from
            the first token, or "each_from_end", counted back from the last.
        width: tokens of the longest prompt.

    Raises:
        MeasureError: there is no such site, head, neuron or position.
    """
    listed: list[Any] = [sites] if isinstance(sites, (str, Site, Mapping)) else list(sites)
    if listed and all(isinstance(item, Intervention) for item in listed):
        return listed  # they know their positions
    sets = [targets for item in listed for targets in _sets(parts, item)]
    if not sets:
        raise MeasureError("there is nothing to patch; name sites, as sites='z' or sites={('z', 10): [4, 9]}")
    return [Intervention(targets, position) for targets in sets for position in _positions(positions, width)]


def _positions(positions: Any, width: int) -> list[Position]:
    if isinstance(positions, str) and positions in BY_TOKEN:
        return list(range(width)) if positions == "each" else list(range(-width, 0))
    if positions == "last":
        return [-1]
    if isinstance(positions, str) and positions in ("all", "prompt"):
        return [positions]  # type: ignore[list-item]
    listed = positions if isinstance(positions, (list, tuple, range, np.ndarray)) else [positions]
    if len(listed) and all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in listed):
        numbers = [int(place) for place in listed]
        for number in numbers:
            if not -width <= number < width:
                raise MeasureError(f"there is no position {number}; the longest prompt has {width} tokens")
        return [tuple(numbers) if len(numbers) > 1 else numbers[0]]
    raise MeasureError(
        f'positions are "all", "prompt", "last", "each", "each_from_end", or numbers counted from a prompt\'s first'
        f" token (or from -1 at its last), not {positions!r}"
    )


def _sets(parts: Parts, sites: Any) -> list[tuple[Target, ...]]:
    """The targets of one name, Site or mapping, set by set."""
    if isinstance(sites, str):
        if sites not in NAMES:
            raise MeasureError(f"no site {sites!r}; sites are {', '.join(NAMES)}")
        places = [site for site in _everywhere(parts, sites) if has_site(parts, site)]
        if not places:
            raise MeasureError(f"a {parts.family.name} model has no {sites}; choose another site")
        return [targets for site in places for targets in _one_by_one(parts, site)]
    if isinstance(sites, Site):
        return _one_by_one(parts, _checked(parts, sites))
    if isinstance(sites, Mapping):
        if not sites:
            raise MeasureError("a set of sites is empty; name at least one, as {('z', 10): [4, 9]}")
        return [in_order(_target(parts, key, units) for key, units in sites.items())]
    raise MeasureError(f"sites are names, Sites or mappings such as {{('z', 10): [4, 9]}}, not {sites!r}")


def in_order(targets: Iterable[Target]) -> tuple[Target, ...]:
    """Targets by layer, stack and name."""
    return tuple(sorted(targets, key=lambda one: (one.site.layer or 0, one.site.stack or "", one.site.name)))


def together(first: Intervention, second: Intervention) -> Intervention:
    """Both patched at once, at the first's positions; heads of one site become one target."""
    units: dict[Site, tuple[int, ...] | None] = {}
    for target in (*first.targets, *second.targets):
        known = units.get(target.site, ())
        whole = target.units is None or known is None
        units[target.site] = None if whole else tuple(sorted({*(known or ()), *(target.units or ())}))
    return Intervention(in_order(Target(site, numbers) for site, numbers in units.items()), first.position)


def _everywhere(parts: Parts, name: str) -> list[Site]:
    stacks: list[StackName | None] = [*(s for s in parts.stacks if s == "encoder"), None]
    sites = []
    for stack in stacks:
        for layer in range(parts.n_encoder_layers if stack == "encoder" else parts.n_layers):
            sites.append(Site(name, layer, stack))
            if stack is None and "cross" in parts.stacks and name in ("attn_out", *HEADS, *KV_HEADS):
                sites.append(Site(name, layer, "cross"))
    return sites


def _one_by_one(parts: Parts, site: Site) -> list[tuple[Target, ...]]:
    count = unit_count(parts, site)
    return [(Target(site),)] if count is None else [(Target(site, (unit,)),) for unit in range(count)]


def _checked(parts: Parts, site: Site) -> Site:
    if not has_site(parts, site):
        raise MeasureError(f"the {parts.family.name} model has no site {site}; it has {parts.n_layers} layers")
    if site.name not in NAMES:
        raise MeasureError(f"{site} cannot be patched; sites are {', '.join(NAMES)}")
    return site


def _target(parts: Parts, key: Any, units: Any) -> Target:
    if not isinstance(key, Site):
        if not isinstance(key, tuple) or len(key) not in (2, 3) or not isinstance(key[0], str):
            raise MeasureError(f"a site of a set is ('z', 10), ('z', 10, 'cross') or a Site, not {key!r}")
        if key[0] not in NAMES:
            raise MeasureError(f"no site {key[0]!r}; sites are {', '.join(NAMES)}")
        key = Site(*key)
    site = _checked(parts, key)
    count = unit_count(parts, site)
    if units is None or units == "all":
        return Target(site, None if count is None else tuple(range(count)))
    numbers = [units] if isinstance(units, int) else list(units)
    if count is None:
        raise MeasureError(
            f"{site} has no heads or neurons to choose from; write {{('{site.name}', {site.layer}): None}}"
        )
    wrong = [number for number in numbers if type(number) is not int or not 0 <= number < count]
    if wrong or not numbers:
        raise MeasureError(f"{site} has units 0 to {count - 1}, not {wrong[0] if wrong else numbers!r}")
    return Target(site, tuple(sorted(set(numbers))))


def position_mask(batch: Batch, site: Site, position: Position) -> Bool[Tensor, "batch seq"] | None:
    """True at the tokens of `position` in the sequence that a site has; None where that is all of them.

    The encoder's sites, and k and v of the attention to it, have a value for each token that the encoder reads.
    """
    if position == "all":
        return None
    if site.stack == "encoder" or (site.stack == "cross" and site.name in KV_HEADS):
        assert batch.encoder_mask is not None
        mask = batch.encoder_mask
        first, lengths = mask.long().argmax(-1), mask.sum(-1)
    else:
        mask, first, lengths = batch.attention_mask, batch.first, batch.prompt_lengths
    columns = torch.arange(mask.shape[1], device=mask.device)
    number = columns - first[:, None]
    inside = (number >= 0) & (number < lengths[:, None])
    if position == "prompt":
        return inside
    mask = torch.zeros_like(inside)
    for place in (position,) if isinstance(position, int) else position:
        assert isinstance(place, int)
        mask |= number == (place if place >= 0 else lengths[:, None] + place)
    return mask & inside


def random_like(
    parts: Parts, interventions: Sequence[Intervention], draws: int, seed: int
) -> tuple[list[Intervention], list[tuple[int, ...]]]:
    """For each set of several sites, random sets of the same make-up: as many of each kind, elsewhere in the model.

    None is the set itself, and none comes twice; where the model has fewer others, there are fewer.

    Returns:
        (the sets, for each intervention the numbers of its own among them; none for one of a single site).
    """
    rng = np.random.default_rng(seed)
    sets: list[Intervention] = []
    owners: list[tuple[int, ...]] = []
    for intervention in interventions:
        numbers: list[int] = []
        seen = {intervention.targets}
        for _ in range(_TRIES * draws if intervention.size > 1 else 0):
            targets = _random_targets(parts, intervention, rng)
            if targets in seen:
                continue
            seen.add(targets)
            numbers.append(len(sets))
            sets.append(Intervention(targets, intervention.position))
            if len(numbers) == draws:
                break
        owners.append(tuple(numbers))
    return sets, owners


_TRIES = 20  # draws for each set that is wanted, before fewer are taken to be all there are


def _random_targets(parts: Parts, like: Intervention, rng: np.random.Generator) -> tuple[Target, ...]:
    """As many units, or whole sites, of each name and stack, drawn without replacement from all there are."""
    counts: dict[tuple[str, StackName | None], int] = {}
    for target in like.targets:
        key = target.site.name, target.site.stack
        counts[key] = counts.get(key, 0) + (1 if target.units is None else len(target.units))
    drawn: dict[Site, list[int] | None] = {}
    for (name, stack), count in counts.items():
        layers = parts.n_encoder_layers if stack == "encoder" else parts.n_layers
        places = [site for site in (Site(name, layer, stack) for layer in range(layers)) if has_site(parts, site)]
        all_units = [(site, unit) for site in places for unit in range(unit_count(parts, site) or 1)]
        for index in sorted(rng.choice(len(all_units), size=count, replace=False)):
            site, unit = all_units[index]
            if unit_count(parts, site) is None:
                drawn[site] = None
            else:
                units = drawn.setdefault(site, [])
                assert units is not None
                units.append(unit)
    return in_order(Target(site, None if units is None else tuple(units)) for site, units in drawn.items())
