"""Two recordings beside each other: equal, close, different, absent, new; and which of it is explained."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

CLOSE = 1e-12
"""Largest difference, as a share of an array's largest magnitude, that a sum in another order explains."""


@dataclass(frozen=True)
class Finding:
    """What became of one array, or of one case that stopped."""

    name: str
    state: str
    detail: str = ""


def compare(old: Path, new: Path, exceptions: Path) -> int:
    """Print how two recordings differ; 1 where something is unexplained, else 0."""
    rules = tomllib.loads(exceptions.read_text())
    logs = [json.loads((folder / "log.json").read_text())["cases"] for folder in (old, new)]
    findings = [
        finding
        for case, about in logs[0].items()
        for finding in _case(case, about, logs[1].get(case), (old, new), rules)
    ]
    findings += [Finding(case, "new case") for case in logs[1] if case not in logs[0]]
    unexplained = []
    used: Counter[str] = Counter()
    for finding in findings:
        if finding.state in ("equal", "close", "new", "new case"):
            continue
        rule = _rule(finding, rules.get("exception", []))
        if rule is None:
            unexplained.append(finding)
        else:
            used[f"{rule['name']} ({', '.join(_kinds(rule))}): {rule['reason']}"] += 1
    counts = Counter(finding.state for finding in findings)
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    close: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.state == "close":
            close.setdefault(finding.name.rsplit("/", 1)[1], []).append(finding)
    for array, several in close.items():
        print(f"close      {len(several):4}  */{array}, such as {several[0].name} {several[0].detail}")
    for text, count in used.items():
        print(f"explained  {count:4}  {text}")
    for finding in unexplained:
        print(f"{finding.state:10} {finding.name}  {finding.detail}")
    print(f"{len(unexplained)} unexplained")
    return int(bool(unexplained))


def _case(
    case: str, about: dict[str, Any], other: dict[str, Any] | None, folders: tuple[Path, Path], rules: dict[str, Any]
) -> list[Finding]:
    if other is None:
        return [Finding(case, "absent", "the case was not run")]
    if "error" in about or "error" in other:
        if about.get("error") == other.get("error"):
            return [Finding(case, "equal", "both stop with the same error")]
        return [Finding(case, "error", f"{about.get('error', 'ran')!r} -> {other.get('error', 'runs')!r}")]
    found = []
    with np.load(folders[0] / f"{case}.npz") as ours, np.load(folders[1] / f"{case}.npz") as theirs:
        left = set(theirs.files)
        for key in ours.files:
            name, twin = f"{case}/{key}", _twin(f"{case}/{key}", left, rules.get("rename", []))
            if twin is None:
                found.append(Finding(name, "absent"))
                continue
            left.discard(twin)
            dims = about["dims"].get(key), other["dims"].get(twin)
            said = "" if twin == key else f"now {twin}"
            found.append(_array(name, ours[key], _stacked(name, twin, ours[key], theirs, rules), dims, said))
        found += [Finding(f"{case}/{key}", "new") for key in sorted(left)]
    return found


def _twin(name: str, there: set[str], renames: list[Any]) -> str | None:
    """The name of an array in the newer recording: by a rule that comes first, its own, or by another rule."""
    case, key = name.split("/", 1)
    moved = [
        (rule.get("first", False), re.sub(rule["old"], rule["new"], name).removeprefix(f"{case}/"))
        for rule in renames
        if re.search(rule["old"], name)
    ]
    before, after = ([new for first, new in moved if first is wanted] for wanted in (True, False))
    return next((each for each in (*before, key, *after) if each in there), None)


def _stacked(name: str, twin: str, old: np.ndarray, there: Any, rules: dict[str, Any]) -> np.ndarray:
    """The newer array, or the several into which version 1's was split, side by side."""
    for rule in rules.get("stack", []):
        names = [f"{twin}{end}" for end in rule["ends"]]
        if re.search(rule["old"], name) and old.shape != there[twin].shape and set(names) <= set(there.files):
            return np.stack([there[each] for each in names], axis=rule.get("axis", 0))
    return there[twin]


def _array(name: str, ours: np.ndarray, theirs: np.ndarray, dims: tuple[Any, Any], said: str) -> Finding:
    if dims[0] and dims[1] and dims[0] != dims[1] and set(dims[0]) == set(dims[1]):
        theirs = theirs.transpose([dims[1].index(dim) for dim in dims[0]])
    if ours.shape != theirs.shape:
        return Finding(name, "differs", f"shape {ours.shape} -> {theirs.shape} {said}")
    numeric = ours.dtype.kind in "fiub" and theirs.dtype.kind in "fiub"
    if not numeric:
        same = ours.astype(str) == theirs.astype(str)
        if same.all():
            return Finding(name, "equal", said)
        where = tuple(int(index) for index in np.argwhere(~same)[0])
        return Finding(
            name,
            "differs",
            f"{int((~same).sum())} of {ours.size}: {str(ours[where])!r} -> {str(theirs[where])!r} {said}",
        )
    if ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
        return Finding(name, "equal", said)
    first, second = ours.astype(np.float64), theirs.astype(np.float64)
    if (np.isfinite(first) != np.isfinite(second)).any():
        return Finding(name, "differs", f"{int((np.isfinite(first) != np.isfinite(second)).sum())} NaN {said}")
    gap = np.abs(first - second)[np.isfinite(first)]
    size = max(float(np.abs(first[np.isfinite(first)]).max(initial=0)), 1e-300)
    share = float(gap.max(initial=0)) / size
    kind = "" if ours.dtype == theirs.dtype else f"{ours.dtype} -> {theirs.dtype} "
    state = "equal" if share == 0 else "close" if share <= CLOSE else "differs"
    return Finding(
        name, state, f"{kind}by {share:.1e} of its largest value, {int((gap > 0).sum())} of {ours.size} {said}"
    )


def _kinds(rule: dict[str, Any]) -> list[str]:
    kinds = rule.get("state", ["differs", "absent", "error"])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _rule(finding: Finding, rules: list[dict[str, Any]]) -> dict[str, Any] | None:
    matching = (rule for rule in rules if finding.state in _kinds(rule) and fnmatchcase(finding.name, rule["name"]))
    return next(matching, None)
