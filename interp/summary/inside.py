"""Where inside the model it changed: layers, components, heads, neurons, attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from interp.summary.table import ByPrompt, Cells, Row, Table, difference

Label = tuple[int, ...]


def _by_head(values: ByPrompt) -> Callable[[xr.Dataset], Cells]:
    """A map by layer and head (and more) as one row of cells a prompt, labelled by their indices."""

    def cells(data: xr.Dataset) -> Cells:
        array = values(data)
        return Cells(array.reshape(len(array), -1), list(np.ndindex(array.shape[1:])))

    return cells


def _sites(data: xr.Dataset) -> list[str]:
    return [str(site) for site in data["site"].values]


def _at_sites(values: ByPrompt) -> Callable[[xr.Dataset], Cells]:
    return lambda data: Cells(values(data), _sites(data))


def lens(table: Table) -> Iterator[Row]:
    """The steps from site to site at which the lenses part most."""
    sites = _sites(table.data)
    steps = [f"from {a} to {b}" for a, b in zip(sites, sites[1:], strict=False)]
    change = difference("lens_logit_diff")

    def step(data: xr.Dataset) -> Cells:
        return Cells(np.diff(change(data), axis=1), steps)

    yield from table.largest("logit lens", lambda label, _: f"tuned minus base: change {label}", step, "logits")


def lens_base_head(table: Table) -> Iterator[Row]:
    """What the residual alone changed: both models' last residuals read by base's head."""
    both = "both last residuals read by base's head"

    def last_kl(data: xr.Dataset) -> np.ndarray:
        return np.asarray(data["lens_base_head_kl"].isel(site=-1).values)

    def through_base(data: xr.Dataset) -> np.ndarray:
        base = data["lens_logit_diff"].sel(model="base", drop=True)
        return np.asarray((data["lens_base_head_logit_diff"] - base).isel(site=-1).values)

    yield table.row("logit lens", f"KL(tuned || base), {both}", last_kl, "nats")
    if "lens_logit_diff" in table.data:
        yield table.row("logit lens", f"tuned minus base, {both}", through_base, "logits")


def lens_positions(table: Table) -> Iterator[Row]:
    """The sites whose lenses lie furthest apart over the whole prompt."""

    def mean(data: xr.Dataset) -> np.ndarray:
        return np.nanmean(data["lens_pos_kl"].values, axis=2)

    def name(site: str, _: np.ndarray) -> str:
        return f"{site}: KL(tuned || base) of the lenses, mean over prompt tokens"

    yield from table.largest("logit lens", name, _at_sites(mean), "nats")


def residual(table: Table) -> Iterator[Row]:
    """Where the residual turned most, and where its length changed most."""

    def turned(data: xr.Dataset) -> np.ndarray:
        return np.asarray(1 - data["resid_cosine"].values)

    def longer(data: xr.Dataset) -> np.ndarray:
        base = data["resid_norm"].sel(model="base").values
        return difference("resid_norm")(data) / np.where(base > 0, base, np.nan)

    names = ("1 - cosine of base's and tuned's residual", "relative change of the residual's norm")
    for values, what, count in ((turned, names[0], 2), (longer, names[1], 1)):

        def name(site: str, _: np.ndarray, what: str = what) -> str:
            return f"{site}: {what}"

        yield from table.largest("residual", name, _at_sites(values), "1", count=count)


def _parts_of(table: Table, name: str, label: Label, rows: np.ndarray) -> str:
    """The change of an attribution split into what is written and how it is read, in words."""
    sides = [table.data[f"{name}_{side}"].values for side in ("write", "readout")]
    write, readout = (float(side[(rows, *label)].mean()) for side in sides)
    return f"(write {write:+.3f}, readout {readout:+.3f})"


def _error(table: Table, name: str = "completeness_error") -> float:
    return float(table.data[name].mean()) if name in table.data else float("nan")


def attribution(table: Table) -> Iterator[Row]:
    """The components whose direct logit attribution changed most."""
    components = [str(name) for name in table.data["component"].values]
    change, error = difference("attribution"), _error(table)

    def name(component: str, rows: np.ndarray) -> str:
        sides = _parts_of(table, "attribution", (components.index(component),), rows)
        return f"{component}: tuned minus base {sides}"

    def cells(data: xr.Dataset) -> Cells:
        return Cells(change(data), components)

    def all_readout(run: xr.Dataset) -> np.ndarray:
        return np.asarray(run["attribution_readout"].values.sum(1))

    yield from table.largest("attribution", name, cells, "logits", completeness=error)
    yield table.row("attribution", "all components: change of the readout", all_readout, "logits", completeness=error)


def heads(table: Table) -> Iterator[Row]:
    """The heads whose direct logit attribution changed most."""

    def name(label: Label, rows: np.ndarray) -> str:
        return f"L{label[0]}H{label[1]}: tuned minus base {_parts_of(table, 'head_attribution', label, rows)}"

    cells = _by_head(difference("head_attribution"))
    yield from table.largest("attribution by head", name, cells, "logits", completeness=_error(table))


def cross_heads(table: Table) -> Iterator[Row]:
    """The same of the heads that attend to an encoder."""
    cells = _by_head(difference("cross_head_attribution"))
    yield from table.largest(
        "attribution by head",
        lambda label, _: f"L{label[0]}H{label[1]} of the attention to the encoder: tuned minus base",
        cells,
        "logits",
        completeness=_error(table),
    )


def neurons(table: Table) -> Iterator[Row]:
    """The MLP neurons whose direct logit attribution changed most."""

    def labels(data: xr.Dataset) -> list[tuple[int, int]]:
        indices = (data["neuron_layer"].values, data["neuron_index"].values)
        return [(int(layer), int(index)) for layer, index in zip(*indices, strict=True)]

    def name(label: tuple[int, int], rows: np.ndarray) -> str:
        rank = labels(table.data).index(label)
        return f"L{label[0]}.mlp neuron {label[1]}: tuned minus base " + _parts_of(
            table, "neuron_attribution", (rank,), rows
        )

    def cells(data: xr.Dataset) -> Cells:
        return Cells(difference("neuron_attribution")(data), labels(data))

    error = _error(table, "neuron_completeness_error")
    yield from table.largest("attribution by neuron", name, cells, "logits", completeness=error)


def _circuit(table: Table, label: Label) -> str:
    """What the head's OV circuit reads and writes in tuned, where it was looked at."""
    data = table.data
    if "ov_writes" not in data:
        return ""
    looked_at = zip(data["changed_layer"].values, data["changed_head_index"].values, strict=True)
    for index, head in enumerate(looked_at):
        if tuple(map(int, head)) == label:
            where = {"changed_head": index, "ov_direction": 0, "rank": slice(0, 2)}
            read, written = (
                ", ".join(repr(str(token)) for token in data[name].sel(model="tuned").isel(where).values)
                for name in ("ov_reads", "ov_writes")
            )
            return f" (OV reads {read}; writes {written})"
    return ""


def patterns(table: Table) -> Iterator[Row]:
    """The heads whose attention patterns lie furthest apart, and whose entropy changed most."""
    stacks = {"": "", "encoder_": " of the encoder", "cross_": " of the attention to the encoder"}
    for prefix, where in stacks.items():
        if f"{prefix}pattern_js" not in table.data:
            continue

        def js(data: xr.Dataset, prefix: str = prefix) -> np.ndarray:
            return np.asarray(data[f"{prefix}pattern_js"].values)

        def name(label: Label, _: np.ndarray, where: str = where) -> str:
            circuit = "" if where else _circuit(table, label)
            return f"L{label[0]}H{label[1]}{where}: JS of the patterns{circuit}"

        yield from table.largest("attention", name, _by_head(js), "nats")
        if f"{prefix}pattern_entropy" in table.data:
            change = _by_head(difference(f"{prefix}pattern_entropy"))

            def entropy_name(label: Label, _: np.ndarray, where: str = where) -> str:
                return f"L{label[0]}H{label[1]}{where}: entropy of the pattern: tuned minus base"

            yield from table.largest("attention", entropy_name, change, "nats", count=1)


def attention_moved(table: Table) -> Iterator[Row]:
    """The heads of which the last token's attention moved most to or from a class of tokens, one class a head."""
    classes = {
        "bos": "the first token",
        "punctuation": "punctuation",
        "content": "content tokens",
        "antecedent": "earlier mentions of the answers",
    }
    present = [classes[str(name)] for name in table.data["token_class"].values]

    def name(label: Label, _: np.ndarray) -> str:
        return f"L{label[0]}H{label[1]}: the last token's attention to {present[label[2]]}: tuned minus base"

    cells = _by_head(difference("attention_to"))
    yield from table.largest("attention moved", name, cells, "share", one_of=lambda label: label[:2])
