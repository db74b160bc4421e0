"""The order in which modules may import each other, and what an import costs."""

import ast
import graphlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lowest first; modules of one row may import each other.
ORDER = [
    row.split()
    for row in """
    errors lazy progress io stats plot
    prompts pair sampling divergences
    families hooks decomposition
    models
    result
    metrics measures
    patching
    circuits reward
    report
    comparison
    cli
    """.strip().splitlines()
]
LEVEL = {name: level for level, row in enumerate(ORDER) for name in row}
FOR_TRAINING = {
    "lazy",
    "errors",
    "io",
    "prompts",
    "pair",
    "progress",
    "sampling",
    "divergences",
    "families",
    "models",
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever it does so, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_typed = {inner for node in typed for part in node.body for inner in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        if node in only_typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def parts(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", parts("interp"), ids=lambda p: str(p.relative_to(ROOT)))
def test_interp_imports_downwards_only(path: Path) -> None:
    name = path.relative_to(ROOT / "interp").parts[0].removesuffix(".py")
    if name in ("__init__", "__main__"):
        return
    assert name in LEVEL, f"{name} has no place in the import order yet"
    for target in imports(path):
        head, *rest = target.split(".")
        if head in ("training", "analyses"):
            assert name == "cli", f"{path} imports {target}; only interp/cli may"
        if head == "interp" and rest:
            assert LEVEL[rest[0]] <= LEVEL[name], f"{path} imports {target}, which lies above it"


def loaded(path: Path) -> set[Path]:
    """Files of ours that a file imports when it is loaded: not within a function, not for type checking."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in inner]
        found |= {file for name in names if (file := file_of(name)) is not None}
    return found - {path}


def file_of(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@pytest.mark.parametrize("package", ["interp", "training", "analyses"])
def test_no_two_files_import_each_other(package: str) -> None:
    order = graphlib.TopologicalSorter({path: loaded(path) for path in parts(package)})
    order.prepare()  # raises CycleError, which names the files


@pytest.mark.parametrize("path", parts("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_training_imports_the_lower_half_of_interp_only(path: Path) -> None:
    for target in imports(path):
        head, *rest = target.split(".")
        assert head != "analyses"
        if head == "interp" and rest:
            assert rest[0] in FOR_TRAINING, f"{path} imports {target}"


def test_no_file_outside_families_names_a_module_of_transformers() -> None:
    names = (
        "c_attn",
        "c_proj",
        "q_proj",
        "o_proj",
        "down_proj",
        "self_attn",
        "ln_1",
        "input_layernorm",
        "embed_tokens",
        "lm_head",
    )
    for path in parts("interp"):
        if path.parent.name != "families":
            text = path.read_text(encoding="utf-8")
            assert not [name for name in names if name in text], path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_interp_and_the_command_line_load_nothing_heavy() -> None:
    heavy = "torch", "transformers", "xarray", "pandas", "scipy", "matplotlib", "numpy"
    code = f"import sys, interp, interp.cli, training; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_public_names() -> None:
    import interp

    assert interp.__all__ == [
        "DEFAULT_MEASURES", "MEASURES", "CheckpointPair", "Comparison", "InterpError", "Measure", "Policy", "Prompts",
        "Result", "RewardModel", "Sampling", "Site", "circuits", "compare", "compare_many", "families", "load",
        "load_pair", "load_result", "load_reward", "patching", "plot", "register_family", "register_measure", "report",
        "reward",
    ]  # fmt: skip
    assert sorted(dir(interp)) == sorted(interp.__all__)
    for name in interp.__all__:
        assert getattr(interp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        interp.nothing  # noqa: B018


def test_a_module_does_not_hide_the_verb_of_its_name() -> None:
    """`interp.reward.lens` is a function whichever module of the package is imported first."""
    code = "import interp.reward.token_join, interp.reward.lens as a, interp; print(a, interp.reward.token_join)"
    assert run(code).count("<function") == 2
    import interp

    assert sorted(dir(interp.reward)) == sorted(interp.reward.__all__)
    assert not [name for name in interp.reward.__all__ if not callable(getattr(interp.reward, name))]


@pytest.mark.parametrize("package", ["interp", "training"])
def test_lazy_names_are_those_that_a_type_checker_sees(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.name: "" if node.module == package else node.module
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == module._HOMES and sorted(module.__all__) == sorted(seen) == sorted(dir(module))


@pytest.mark.slow
def test_a_type_checker_elsewhere_knows_what_there_is(tmp_path: Path) -> None:
    names = ("reward.attribute", "plot.lens", "load", "load_pair")
    code = ["import interp", *(f"reveal_type(interp.{name})" for name in names), "interp.nothing"]
    (tmp_path / "code.py").write_text("\n".join(code))
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--no-incremental", "code.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env).stdout
    revealed = [line for line in said.splitlines() if line.startswith("code.py") and "Revealed type" in line]
    assert len(revealed) == len(names) and all('is "def (' in line for line in revealed), said
    assert 'code.py:6: error: Module has no attribute "nothing"' in said
