"""The package is light to import, and its files keep to the floors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import htnet_jax

ROOT = Path(htnet_jax.__file__).parent

# A file may import from lower floors only; within a floor, only from its own folder.
FLOORS = {
    "errors": 0,
    "models": 1,
    "motion": 1,
    "evaluation": 1,
    "datasets": 2,
    "training": 3,
    "train": 4,
    "evaluate": 4,
}
HEAVY = ("torch", "cv2", "dlib", "tensorflow_datasets", "jax")


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:
            yield ".".join(parts), path


def project_imports(path):
    """Dotted names below `htnet_jax` that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.removeprefix("htnet_jax.") for n in names if n.startswith("htnet_jax.")}
    return found


def loaded_after(statement):
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import htnet_jax") == set()


def test_training_folds_and_models_need_jax_only():
    assert loaded_after("import htnet_jax.training.folds, htnet_jax.models") == {"jax"}


def test_evaluation_needs_no_jax():
    names = "metrics, predictions, protocols, report"
    assert loaded_after(f"from htnet_jax.evaluation import {names}") == set()


def test_subpackages_are_found_without_an_import_of_their_own():
    assert htnet_jax.models.HTNet.__name__ == "HTNet"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = htnet_jax.nonsense


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_point_down(name, path):
    top = name.partition(".")[0]
    for imported in project_imports(path):
        other = imported.partition(".")[0]
        assert other == top or FLOORS[other] < FLOORS[top], f"{name} imports {imported}"


def test_no_circles_between_files():
    known = {name for name, _ in modules()}
    graph = {}
    for name, path in modules():
        targets = set()
        for imported in project_imports(path):
            # `from package import module` and `from module import thing` look alike.
            candidates = (imported, imported.rpartition(".")[0])
            targets |= {candidate for candidate in candidates[:1] if candidate in known}
            if candidates[0] not in known and candidates[1] in known:
                targets.add(candidates[1])
        graph[name] = targets - {name}

    done, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name in done:
            return
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_only_one_file_says_pmap():
    saying = [name for name, path in modules() if "jax.pmap" in path.read_text()]
    assert saying == ["training.folds"]
