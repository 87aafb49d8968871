"""Who may know whom, what a serving host must not load, and the one tree of exceptions."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import candidate_gen.errors

ROOT = Path(__file__).parents[1]
ORDER = ["persona4rec", "offline", "reranker", "candidate_gen"]
"""Each may import those after it, and none before."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ORDER
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_bytes()) for module, path in MODULES.items()}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every module that is imported anywhere in the file, in functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if MODULES.get(module, Path()).stem == "__init__" else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    forbidden = set(ORDER[: ORDER.index(package)])
    against = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        if module.split(".")[0] == package
        for name in imported(module, tree)
        if name.split(".")[0] in forbidden
    ]
    assert against == []


@pytest.mark.parametrize(
    "source",
    ["import a.b as c", "from a.b import c", "def f():\n    from a import b", "from ..a import b", "from .. import a"],
)
def test_no_way_to_import_escapes_the_rule(source: str) -> None:
    (name,) = imported("x.y.z", ast.parse(source))
    assert name in {"a.b", "a", "x.a", "x"}


def test_all_packages_are_looked_at() -> None:
    assert {module.split(".")[0] for module in TREES} == set(ORDER)
    assert any(name.startswith("reranker.") for name in imported("offline.publish", TREES["offline.publish"]))


# Not scipy: numba asks for its version wherever it is installed, which is not on a serving host.
HEAVY = ["torch", "transformers", "sentence_transformers", "implicit", "sklearn", "openai"]


def test_a_server_loads_no_machine_learning() -> None:
    script = f"import sys, reranker.server; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


ROOT_ERROR = candidate_gen.errors.Persona4RecError.__name__


def test_the_drawn_tree_of_exceptions_is_the_real_one() -> None:
    assert _drawn(candidate_gen.errors.__doc__ or "") == _real()


def _drawn(docstring: str) -> set[tuple[str, str, str]]:
    """Return (exception, its parent, its module) for each line of the tree."""
    parents, found = {0: ROOT_ERROR}, set()
    for indent, name, module in re.findall(r"^ {4}([ |]*)\+-- (\w+) +([\w.]+)", docstring, re.MULTILINE):
        depth = len(indent) // 4 + 1
        parents[depth] = name
        found.add((name, parents[depth - 1], module))
    return found


def _real() -> set[tuple[str, str, str]]:
    classes = [
        (node.name, {ast.unparse(base).split(".")[-1] for base in node.bases}, module)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    found: set[tuple[str, str, str]] = set()
    known = [ROOT_ERROR]
    for parent in known:
        children = [(name, parent, module) for name, bases, module in classes if parent in bases]
        found.update(children)
        known.extend(name for name, _, _ in children)
    return found
