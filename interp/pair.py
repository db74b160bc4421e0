"""CheckpointPair: a base model, what RLHF made of it, and what belongs to both; on disk with a manifest, or named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from interp.errors import FormatError, LoadError
from interp.io import hash_folder, read_json, sha256, write_json

MANIFEST = "pair.json"
FORMAT = 1

_REQUIRED = ("format", "engine", "config", "seed", "versions", "base", "tuned", "files", "final")
_SHIPPED = Path(__file__).parent / "data"

InMemory = Literal["all", "one"]


@dataclass(frozen=True, repr=False)
class CheckpointPair:
    """A base model, what RLHF made of it, and everything between them.

    It is a folder that training wrote (`path` and `manifest`), or models that somebody named (`models`); what is named
    goes before what the manifest says. `interp.load_pair` makes either. A *reference* of a manifest is a mapping with
    one of the keys `path` (relative to the pair's folder), `folder` (somewhere else on this machine) or `id` (on the
    hub, with `revision`), and whatever else describes the thing.

    Attributes:
        path: the pair's folder, or None where its models were named.
        manifest: the content of pair.json: `format`, `engine`, `config`, `seed`, `versions`, `base`, `tuned`, `files`
            (SHA-256 by relative path), `final` (held-out reward, KL in nats per response token), and optionally
            `reward`, `value_head`, `checkpoints`, `controls`, `replicates`. Empty where the models were named.
        models: `base`, `tuned`, `reward`, `controls`, `replicates` by name, as they were given.
        tokenizer: the tokenizer with which all models are read, or "base" or "tuned"; None: each model's.
        in_memory: "all" models at a time, or "one".
        loading: how its models are loaded: arguments of `interp.load`.
    """

    path: Path | None
    manifest: Mapping[str, Any]
    models: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    in_memory: InMemory = "all"
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The folder, or the models, and what came of the run."""
        counts = {name: len(getattr(self, f"{name}s")) for name in ("control", "replicate")}
        others = [f"{number} {name}{'s'[: number - 1]}" for name, number in counts.items() if number]
        if self.path is None:
            reward = [] if self.reward is None else [f"reward {_word(self.reward)}"]
            return f"CheckpointPair({_word(self.base)} to {_word(self.tuned)}{_listed([*reward, *others])})"
        final = self.manifest["final"]
        figures = [f"KL {final['kl']:.3g}"] if "kl" in final else []
        if "reward" in final and "base_reward" in final:
            figures.insert(0, f"reward {final['base_reward']:.3g} to {final['reward']:.3g}")
        return f"CheckpointPair({_word(self.path)}{_listed([self.manifest['engine'], *figures, *others])})"

    @property
    def name(self) -> str:
        """The pair in a word or two: its folder, or the names of its models."""
        return str(self.path) if self.path is not None else f"{_word(self.base)} to {_word(self.tuned)}"

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> CheckpointPair:
        """Read the pair in folder `path`.

        Args:
            path: folder that holds pair.json, or the name of a pair that comes with the package ("demo"; a folder of
                that name is "./demo").
            verify: also compare the SHA-256 of every file with the manifest.

        Raises:
            FormatError: there is no pair, it comes from a newer version, or (with `verify`) a file differs.
        """
        folder = pair_folder(path)
        if _begun(folder) and not (folder / MANIFEST).is_file():
            raise FormatError(f"the run toward {folder} is not finished; go on with: interp train --resume {folder}")
        if not (folder / MANIFEST).is_file():
            if not folder.is_dir():
                raise FormatError(f"there is no folder {str(folder)!r}; name a pair's folder, or the shipped demo")
            raise FormatError(f"{folder} holds no {MANIFEST}; a pair is a folder that `interp train` wrote")
        manifest = read_json(folder / MANIFEST)
        missing = [key for key in _REQUIRED if key not in manifest] if isinstance(manifest, dict) else list(_REQUIRED)
        if missing:
            raise FormatError(f"{folder / MANIFEST} lacks {', '.join(missing)}; train the pair again")
        if manifest["format"] != FORMAT:
            raise FormatError(
                f"{folder / MANIFEST} has format {manifest['format']}, this version reads {FORMAT}; update rlhf-interp"
            )
        pair = cls(folder, manifest)
        if verify:
            pair.verify()
        return pair

    @classmethod
    def write(cls, path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> CheckpointPair:
        """Hash every file that lies in folder `path` and write pair.json beside them."""
        folder = Path(path)
        files = {name: digest for name, digest in hash_folder(folder).items() if name != MANIFEST}
        full = {"format": FORMAT, **manifest, "files": files}
        write_json(folder / MANIFEST, full)
        return cls.load(folder)

    def verify(self) -> None:
        """Compare every file with its recorded SHA-256.

        Raises:
            FormatError: naming the first file that is absent or differs.
        """
        for name, digest in self.manifest.get("files", {}).items():
            file = self.folder / name
            if not file.is_file():
                raise FormatError(f"{file} is listed in {MANIFEST} but absent; copy the whole folder again")
            if sha256(file) != digest:
                raise FormatError(f"{file} differs from its hash in {MANIFEST}; copy the whole folder again")

    @property
    def folder(self) -> Path:
        """The folder of a pair that training wrote.

        Raises:
            LoadError: the pair was named, so that there is none.
        """
        if self.path is None:
            raise LoadError(
                f"the pair of {self.name} has no folder, and so no recipe, samples or checkpoints; name the folder of a"
                " pair that `interp train` wrote"
            )
        return self.path

    @property
    def base(self) -> Any:
        """The base model, as `interp.load` takes it: of a folder a path or hub id, else what was named."""
        return self.models["base"] if "base" in self.models else self.resolve(self.manifest["base"])

    @property
    def tuned(self) -> Any:
        """The tuned model, likewise."""
        return self.models["tuned"] if "tuned" in self.models else self.resolve(self.manifest["tuned"])

    @property
    def reward(self) -> Any:
        """The reward model, likewise, or None where the reward was a function or is not known."""
        if "reward" in self.models:
            return self.models["reward"]
        reference = self.manifest.get("reward")
        return self.resolve(reference) if reference and _is_reference(reference) else None

    @property
    def controls(self) -> tuple[Any, ...]:
        """The control runs' tuned models (shuffled reward ...), likewise, in the order of the manifest."""
        return self._runs("controls")

    @property
    def replicates(self) -> tuple[Any, ...]:
        """The tuned models of other seeds, likewise."""
        return self._runs("replicates")

    @property
    def checkpoints(self) -> dict[int, str]:
        """Paths or ids of the policies that were stored on the way, by optimiser step."""
        return {int(entry["step"]): self.resolve(entry) for entry in self.manifest.get("checkpoints", ())}

    def _runs(self, name: str) -> tuple[Any, ...]:
        if name in self.models:
            return tuple(self.models[name])
        return tuple(self.resolve(reference) for reference in self.manifest.get(name, ()))

    def resolve(self, reference: Mapping[str, Any]) -> str:
        """A path or hub id that can be handed to `interp.load`.

        Raises:
            FormatError: the reference names nothing.
        """
        if "path" in reference:
            return str(self.folder / reference["path"])
        if "folder" in reference:
            return str(reference["folder"])
        if "id" in reference:
            revision = reference.get("revision")
            return f"{reference['id']}@{revision}" if revision else str(reference["id"])
        where = self.folder / MANIFEST
        raise FormatError(f"{where}: a reference needs one of path, folder or id, not {dict(reference)}")


def shipped_pair(name: object) -> Path | None:
    """The folder of a pair that comes with the package, by its bare name; None where there is none of that name."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 60:
        return None
    folder = _SHIPPED / name
    return folder if (folder / MANIFEST).is_file() else None


def pair_folder(pair: str | os.PathLike[str]) -> Path:
    """The folder of a pair that comes with the package, by its bare name, or the path itself.

    A bare name wins over a folder that is called so, which is "./demo" or Path("demo").
    """
    return shipped_pair(pair) or Path(pair)


def pair_at(place: object) -> CheckpointPair | None:
    """The pair that is meant, where one is: a pair, its folder, or the name of one that comes with the package.

    Raises:
        FormatError: the run toward it is not finished, or its pair.json is damaged.
    """
    if isinstance(place, CheckpointPair):
        return place
    if not isinstance(place, (str, os.PathLike)):
        return None
    folder = shipped_pair(place) or Path(place)
    begun = _begun(folder) and not folder.is_dir()
    return CheckpointPair.load(folder) if begun or (folder / MANIFEST).is_file() else None


def _begun(folder: Path) -> bool:
    """Whether a run toward a folder has begun and not ended."""
    absolute = folder.absolute()
    return bool(absolute.name) and absolute.with_name(f"{absolute.name}.unfinished").is_dir()


def _is_reference(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("path", "folder", "id"))


def _word(model: object) -> str:
    """A model as it is called in one line."""
    if isinstance(model, (str, os.PathLike)):
        text = os.fspath(model)
        return repr(text if len(text) <= 60 else f"...{text[-57:]}")
    name = getattr(model, "name", None)
    return repr(name) if isinstance(name, str) else f"a loaded {type(model).__name__}"


def _listed(facts: list[str]) -> str:
    return f": {', '.join(facts)}" if facts else ""
