"""Every dotted name of ours in README, docs, docstrings, messages and hints is there after `import interp` alone."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("interp", "training", "analyses")
NAME = re.compile(rf"(?<![\w./\-$@{{])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")
RUN = re.compile(rf"-m ((?:{'|'.join(PACKAGES)})[\w.]*)")
IMPORT = re.compile(rf"^\s*(?:>>> )?(?:import|from)\s+((?:{'|'.join(PACKAGES)})[\w.]*)", re.MULTILINE)
FILES = ("toml", "py", "md", "html", "json", "csv", "parquet", "nc", "png", "txt", "cfg")

RESOLVE = """
import importlib, json, sys
from types import ModuleType
import interp

def offered(package, part):
    # a submodule is an attribute as soon as anything has imported it; it must be there before that
    if part in getattr(package, "__all__", ()):
        return True
    try:
        package.__dict__["__getattr__"](part)
    except (AttributeError, KeyError):
        return False
    return True

def there(name):
    root, *rest = name.split(".")
    found = interp if root == "interp" else importlib.import_module(root)
    for part in rest:
        value = getattr(found, part)
        submodule = isinstance(value, ModuleType) and value.__name__ == f"{getattr(found, '__name__', None)}.{part}"
        if submodule and not offered(found, part):
            return False
        found = value
    return True

absent = []
for name in json.load(sys.stdin):
    try:
        missing = not there(name)
    except AttributeError:
        missing = True
    if missing:
        absent.append(name)
print(json.dumps(absent))
"""


def texts() -> dict[str, list[str]]:
    """The texts a reader meets, by file: prose, and the string literals of the code."""
    found = {str(path.relative_to(ROOT)): [path.read_text("utf-8")] for path in prose()}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
            # a literal that is nothing but a dotted name, or MODULE:NAME, is an address that the code itself imports
            said = [node.value for node in nodes if not re.fullmatch(r"[\w.]+(:\w+)?", node.value)]
            found[str(path.relative_to(ROOT))] = said
        for path in sorted((ROOT / package).rglob("*.html")):
            found[str(path.relative_to(ROOT))] = [path.read_text("utf-8")]
    return found


def prose() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def dotted(text: str) -> set[str]:
    """Names in a text, but file names, what an import statement in it imports, and what `python -m` runs."""
    imported = {*IMPORT.findall(text), *RUN.findall(text)}
    names = {name for name in NAME.findall(text) if name.rsplit(".", 1)[1] not in FILES}
    return {name for name in names if not any(name == one or name.startswith(f"{one}.") for one in imported)}


def test_the_names_are_found():
    text = 'see `interp.plot.lens`, interp.toml, x.interp.no, (training.RLHFConfig); "analyses.nulls.run" ./interp.pyx'
    assert dotted(text) == {"interp.plot.lens", "training.RLHFConfig", "analyses.nulls.run"}
    assert dotted("python -m interp.cli train") == set()
    assert dotted(">>> import interp.hooks\n>>> interp.hooks.Site") == set()


def test_every_name_that_is_said_is_there():
    where = defaultdict(set)
    for file, said in texts().items():
        for name in set().union(*map(dotted, said)):
            where[name].add(file)
    assert len(where) > 20
    command = [sys.executable, "-W", "ignore", "-c", RESOLVE]
    done = subprocess.run(command, input=json.dumps(sorted(where)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    absent = json.loads(done.stdout)
    assert not absent, "\n".join(f"{name}: {', '.join(sorted(where[name]))}" for name in absent)


def test_every_module_that_is_run_is_there():
    modules = {name.rstrip(".") for said in texts().values() for text in said for name in RUN.findall(text)}
    assert modules
    missing = [name for name in sorted(modules) if importlib.util.find_spec(name) is None]
    assert not missing, f"python -m cannot run {', '.join(missing)}"


def test_what_an_import_statement_in_the_prose_names_is_there():
    statements = [
        line.strip().removeprefix(">>> ")
        for path in prose()
        for line in path.read_text("utf-8").splitlines()
        if IMPORT.match(line) and re.fullmatch(r"(>>> )?(import|from) [\w., ]+", line.strip())
    ]
    assert statements
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(statements)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
