"""Light imports, floors, and no circles."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "htnet_jax"
# A file imports only from lower floors, or from its own folder.
FLOORS = {
    "errors": -1,
    "ranges": -1,
    "foreign": 0,
    "config": 1,
    "io": 1,
    "pages": 1,
    "progress": 1,
    "tensors": 1,
    "models": 2,
    "motion": 2,
    "evaluation": 2,
    "learn": 3,
    "datasets": 3,
    "features": 4,
    "torch_bridge": 4,
    "training": 5,
    "train": 6,
    "evaluate": 6,
    "predict": 6,
    "prepare": 6,
}
# What the folders of the lowest floors do without, so that they can be used on their own.
FORBIDDEN = {
    "models": {"torch", "cv2", "tensorflow_datasets", "optax", "orbax"},
    "motion": {"jax", "flax", "torch", "tensorflow_datasets"},
    "evaluation": {"jax", "flax", "torch", "cv2", "tensorflow_datasets"},
    "datasets": {"jax", "flax", "torch", "tensorflow"},
    "learn": {"torch", "cv2", "tensorflow_datasets", "orbax"},
    "features": {"torch", "dlib", "tensorflow_datasets", "orbax"},
    "torch_bridge": {"cv2", "dlib", "tensorflow_datasets", "tensorflow", "orbax"},
    "training": {"torch", "cv2", "dlib", "tensorflow_datasets", "tensorflow"},
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree, package):
    """Yields every absolute name that a parsed file of `package` imports, inside functions too.

    `from a import b` is yielded as `a.b`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            lead = [*(above if node.level else []), *([node.module] if node.module else [])]
            yield from (".".join([*lead, alias.name]) for alias in node.names)


def parse(name):
    path = PATHS[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(imports_of(ast.parse(path.read_text(), str(path)), package))


IMPORTS = {name: parse(name) for name in PATHS}


def project_modules(name):
    """The modules of the project that a module imports."""
    for imported in IMPORTS[name]:
        if imported.split(".")[0] == PACKAGE.name:
            # `from htnet_jax.x import y`: y is a module of its own, or a name in x.
            yield imported if imported in PATHS else imported.rpartition(".")[0]


def floor_of(name):
    """(floor, folder or file of the top level); the package itself belongs to no floor."""
    part = name.split(".")[1]
    return FLOORS[part], part


MODULES = [name for name in PATHS if name != PACKAGE.name]


def test_the_parser_sees_all_forms_of_import():
    text = """
import os.path, htnet_jax.models as m
from htnet_jax import errors
from . import beside
from ..evaluation import metrics
def inner():
    from htnet_jax.models.htnet import HTNet
"""
    assert sorted(imports_of(ast.parse(text), "htnet_jax.training")) == [
        "htnet_jax.errors",
        "htnet_jax.evaluation.metrics",
        "htnet_jax.models",
        "htnet_jax.models.htnet.HTNet",
        "htnet_jax.training.beside",
        "os.path",
    ]
    assert "htnet_jax.training.folds" in project_modules("htnet_jax.training.experiment")


@pytest.mark.parametrize("name", MODULES)
def test_floors(name):
    floor, part = floor_of(name)
    for imported in project_modules(name):
        assert imported in PATHS, f"{name} imports {imported}, which does not exist"
        if imported == PACKAGE.name:
            continue
        other_floor, other_part = floor_of(imported)
        assert other_part == part or other_floor < floor, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if floor_of(name)[1] in FORBIDDEN])
def test_third_parties(name):
    found = {imported.split(".")[0] for imported in IMPORTS[name]}
    assert not found & FORBIDDEN[floor_of(name)[1]]


# BERT alone comes as files of others, which it reads itself.
READS_FILES = {"htnet_jax.models.bert": {"errors", "foreign", "tensors"}}


def test_networks_import_nothing_else_of_the_project_but_what_a_value_may_be():
    networks = [name for name in MODULES if floor_of(name)[1] == "models"]
    assert {"htnet_jax.models.htnet", *READS_FILES} <= {*networks}
    for name in networks:
        others = {floor_of(imported)[1] for imported in project_modules(name)} - {"models"}
        assert others <= {"ranges", *READS_FILES.get(name, ())}


def test_torch_is_imported_by_the_bridge_and_for_files_of_its_own():
    """`tensors` does so within a function: a BERT's weights may be a PyTorch file."""
    found = {
        name
        for name, names in IMPORTS.items()
        if any(one.split(".")[0] == "torch" for one in names)
    }
    assert "htnet_jax.torch_bridge.convert" in found
    assert {name for name in found if floor_of(name)[1] != "torch_bridge"} == {"htnet_jax.tensors"}
    assert not modules_after("htnet_jax.tensors", "htnet_jax.features.text") & {"torch"}


def test_no_circles():
    """Also none through imports inside functions or for type checkers only."""
    graph = {name: set(project_modules(name)) - {PACKAGE.name} for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("htnet_jax.errors") < order.index("htnet_jax.train")


def test_only_folds_mentions_pmap():
    mentions = {name for name, path in PATHS.items() if "pmap" in path.read_text()}
    assert mentions == {"htnet_jax.training.folds"}


def modules_after(*names):
    """Names of the top-level modules that a fresh interpreter holds after importing `names`."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=300,
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_is_light():
    loaded = modules_after("htnet_jax", "htnet_jax.errors")
    assert "htnet_jax" in loaded
    assert not loaded & {
        *("torch", "cv2", "dlib", "tensorflow_datasets", "tensorflow"),
        *("jax", "flax", "optax", "orbax", "numpy", "matplotlib"),
    }


def test_importing_training_needs_no_image_or_data_set_library():
    loaded = modules_after(
        "htnet_jax.models", "htnet_jax.training.folds", "htnet_jax.training.state"
    )
    assert {"jax", "flax"} <= loaded
    assert not loaded & {"torch", "cv2", "dlib", "tensorflow_datasets", "tensorflow"}


def test_importing_an_experiment_needs_no_torch_dlib_or_tensorflow():
    """TensorFlow Datasets itself imports OpenCV where that is installed.

    scikit-learn takes most of a second to import, and only baselines need it.
    """
    loaded = modules_after("htnet_jax.training.experiment")
    assert {"jax", "tensorflow_datasets"} <= loaded
    assert not loaded & {"torch", "dlib", "tensorflow", "sklearn"}


# `io` itself, and `state`, which writes in an exclusive folder beside what Orbax does.
WRITERS = {"htnet_jax/io.py", "htnet_jax/training/state.py"}
REPOSITORY = pathlib.Path(__file__).parents[1]


def test_files_are_written_in_one_place():
    """`io.write_atomically`: its temporary file is exclusive, and no link is followed."""
    found = []
    for path in [*REPOSITORY.glob("htnet_jax/**/*.py"), *REPOSITORY.glob("tools/*.py")]:
        name = path.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name not in WRITERS and _writes(node):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found


def _writes(call):
    """Whether a call writes to a file by its name: what is given to it is not an open one."""
    function = (
        call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    )
    words = [one.value for one in (*call.args, *(k.value for k in call.keywords)) if _is_text(one)]
    if function == "open":
        return any(set(word) & set("wax+") and set(word) <= set("rwaxbt+") for word in words)
    given = ast.unparse(call.args[0]) if call.args else ""
    if function in ("savefig", "savez", "savez_compressed", "to_csv"):
        return bool(given) and given not in ("file", "buffer")
    return function in ("write_text", "write_bytes", "imwrite")


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
