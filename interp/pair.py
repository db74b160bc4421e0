"""CheckpointPair: what training writes and the library reads, described by one manifest, pair.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import FormatError
from interp.io import hash_folder, read_json, sha256, write_json

MANIFEST = "pair.json"
FORMAT = 1

_REQUIRED = ("format", "engine", "config", "seed", "versions", "base", "tuned", "files", "final")


SHIPPED = ("demo",)
"""Names of the pairs that come with the package."""


def pair_folder(pair: str | os.PathLike[str]) -> Path:
    """The folder of a pair that comes with the package, by its bare name, or the path itself.

    A bare name wins over a folder that is called so, which is "./demo" or Path("demo").
    """
    return Path(__file__).parent / "data" / pair if isinstance(pair, str) and pair in SHIPPED else Path(pair)


@dataclass(frozen=True, repr=False)
class CheckpointPair:
    """A base model, what RLHF made of it, and everything between them, in one folder.

    A *reference* is a mapping with one of the keys `path` (relative to the pair's folder), `folder` (somewhere else
    on this machine) or `id` (on the hub, with `revision`), and whatever else describes the thing.

    Attributes:
        path: the pair's folder.
        manifest: the content of pair.json: `format`, `engine`, `config`, `seed`, `versions`, `base`, `tuned`, `files`
            (SHA-256 by relative path), `final` (held-out reward, KL in nats per response token), and optionally
            `reward`, `value_head`, `checkpoints`, `controls`, `replicates`.
    """

    path: Path
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        """The folder, and what came of the run."""
        final = self.manifest["final"]
        figures = [f"KL {final['kl']:.3g}"] if "kl" in final else []
        if "reward" in final and "base_reward" in final:
            figures.insert(0, f"reward {final['base_reward']:.3g} to {final['reward']:.3g}")
        others = [f"{len(found)} {name}" for name in ("controls", "replicates") if (found := self.manifest.get(name))]
        return f"CheckpointPair({str(self.path)!r}: {', '.join([self.manifest['engine'], *figures, *others])})"

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> CheckpointPair:
        """Read the pair in folder `path`.

        Args:
            path: folder that holds pair.json, or "demo" (see `pair_folder`).
            verify: also compare the SHA-256 of every file with the manifest.

        Raises:
            FormatError: there is no pair, it comes from a newer version, or (with `verify`) a file differs.
        """
        folder = pair_folder(path)
        if folder.with_name(folder.name + ".unfinished").is_dir() and not (folder / MANIFEST).is_file():
            raise FormatError(f"the run toward {folder} is not finished; go on with: interp train --resume {folder}")
        if not (folder / MANIFEST).is_file():
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
        for name, digest in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                raise FormatError(f"{file} is listed in {MANIFEST} but absent; copy the whole folder again")
            if sha256(file) != digest:
                raise FormatError(f"{file} differs from its hash in {MANIFEST}; copy the whole folder again")

    @property
    def base(self) -> str:
        """Path or hub id of the base model, as `interp.compare` takes it."""
        return self.resolve(self.manifest["base"])

    @property
    def tuned(self) -> str:
        """Path or hub id of the tuned model."""
        return self.resolve(self.manifest["tuned"])

    @property
    def reward(self) -> str | None:
        """Path or hub id of the reward model, or None where the reward was a function."""
        reference = self.manifest.get("reward")
        return self.resolve(reference) if reference and _is_reference(reference) else None

    @property
    def controls(self) -> tuple[str, ...]:
        """Paths or ids of the null runs' tuned models (shuffled reward ...), in the order of the manifest."""
        return tuple(self.resolve(reference) for reference in self.manifest.get("controls", ()))

    @property
    def checkpoints(self) -> dict[int, str]:
        """Paths or ids of the policies that were stored on the way, by optimiser step."""
        return {int(each["step"]): self.resolve(each) for each in self.manifest.get("checkpoints", ())}

    @property
    def replicates(self) -> tuple[str, ...]:
        """Paths or ids of the tuned models of other seeds."""
        return tuple(self.resolve(reference) for reference in self.manifest.get("replicates", ()))

    def resolve(self, reference: Mapping[str, Any]) -> str:
        """A path or hub id that can be handed to `interp.compare`.

        Raises:
            FormatError: the reference names nothing.
        """
        if "path" in reference:
            return str(self.path / reference["path"])
        if "folder" in reference:
            return str(reference["folder"])
        if "id" in reference:
            revision = reference.get("revision")
            return f"{reference['id']}@{revision}" if revision else str(reference["id"])
        raise FormatError(f"{self.path / MANIFEST}: a reference needs one of path, folder or id, not {dict(reference)}")


def _is_reference(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("path", "folder", "id"))
