"""The documentation: its Python runs as printed, its commands, settings, paths and links exist."""

import ast
import builtins
import configparser
import contextlib
import dis
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest

from htnet_jax import datasets, models
from htnet_jax.config import default_config
from htnet_jax.datasets import loading
from htnet_jax.datasets.synthetic import recipe, rendering
from htnet_jax.evaluation import metrics
from htnet_jax.features import features
from htnet_jax.learn import losses, optim
from htnet_jax.torch_bridge import BRIDGES
from htnet_jax.training import settings

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
}
# (file, line, language, text) of every fenced block.
BLOCKS = [
    (name, text[: found.start()].count("\n") + 1, found[1], found[2])
    for name, text in FILES.items()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]
PYTHON = [name for name in FILES if any(b[0] == name and b[2] == "python" for b in BLOCKS)]
# Tables that an example may add to.
TABLES = (
    *(metrics.METRICS, features.FEATURES, losses.LOSSES, optim.OPTIMIZERS, optim.SCHEDULES),
    *(models.MODELS, BRIDGES, datasets.BUILDERS),
)


def commands():
    """(place, words) of every command in a shell block; continued lines are joined."""
    for name, line, language, text in BLOCKS:
        if language == "sh":
            for one in text.replace("\\\n", " ").splitlines():
                for part in one.split("#")[0].split("&&"):
                    if part.strip():
                        yield f"{name}:{line}", shlex.split(part)


COMMANDS = list(commands())


def run(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the blocks find: a run like the demo's, its conversion, two frames of a clip."""
    folder = tmp_path_factory.mktemp("docs")
    done = run(
        *("-m", "htnet_jax.train", f"--config={ROOT / 'configs/demo.py'}", "--workdir=runs/demo"),
        *("--config.dataset.data_dir=runs/data", "--config.dataset.config=tiny"),
        *("--config.epochs=2", "--config.batch_size=10", "--config.inner_folds=0"),
        # One level of one token compiles in seconds.
        *("--config.model.patch_size=28", "--config.model.num_hierarchies=1"),
        "--config.model.block_repeats=(1,)",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    done = run(
        *(ROOT / "tools/convert_checkpoint.py", "to-torch", "--workdir=runs/demo", "--fold=a01"),
        "--output=runs/a01.pth",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    clip = rendering.render_clip(0, recipe.plan(0, 1, 3)[0])
    for name in ("onset", "apex"):
        assert cv2.imwrite(str(folder / f"{name}.png"), clip.frames[getattr(clip, name)])
    return folder


def test_every_block_says_what_it_is():
    """So that nothing escapes the tests below."""
    assert {language for _, _, language, _ in BLOCKS} <= {"python", "sh", "text"}
    assert len(BLOCKS) == sum(text.count("```") for text in FILES.values()) / 2


def undefined(code, space):
    """Global names that a function of a block would look for in vain."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    inside = [undefined(one, space) for one in code.co_consts if hasattr(one, "co_code")]
    return set().union(names - set(space) - set(dir(builtins)), *inside)


@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(name, folder, monkeypatch):
    """As printed, each in names of its own: what one block makes, the next finds in the tables."""
    monkeypatch.chdir(folder)
    with contextlib.ExitStack() as stack:
        for table in TABLES:
            stack.enter_context(mock.patch.dict(table))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for file, line, language, text in BLOCKS:
            if (file, language) == (name, "python"):
                space = {"__name__": "__main__"}
                # Lines as in the file, so that a traceback names the right one.
                tree = ast.parse("\n" * line + text, file)
                code = compile(tree, str(ROOT / file), "exec")
                exec(code, space)
                assert not undefined(code, space), f"{file}:{line}"
                if "get_config" in space:
                    settings.check(space["get_config"]())


def test_the_converted_network_computes_the_same(folder, monkeypatch):
    """What docs/parity.md says of its block."""
    monkeypatch.chdir(folder)
    space = {}
    blocks = [b for b in BLOCKS if b[0] == "docs/parity.md" and "theirs = " in b[3]]
    exec(blocks[0][3], space)
    assert abs(space["ours"] - space["theirs"].detach().numpy()).max() < 1e-5


def test_the_flow_snippet_feeds_the_network_as_it_was_trained(folder, monkeypatch):
    """Recipe, scaling, channels and layout are those of the run that the README trains."""
    monkeypatch.chdir(folder)
    space = {}
    (block,) = [b for b in BLOCKS if b[0] == "docs/recipes.md" and "mosaic[None]" in b[3]]
    exec(block[3], space)
    data = space["config"].dataset
    demo = runpy.run_path(str(ROOT / "configs/demo.py"))["get_config"]().dataset
    same = ("layout", "channels", "scaling")
    recipe_name = demo.config or datasets.BUILDERS[demo.name].BUILDER_CONFIGS[0].name
    assert [data[key] for key in same] == [demo[key] for key in same]
    assert f'method="{recipe_name.partition("_")[0]}", size=28' in block[3]
    arrays = SimpleNamespace(
        name="demo",
        flow=space["tensor"][None],
        landmarks=space["points"][None],
        clips=np.array(["a"]),
    )
    channels = data.channels.split(",")
    inputs = loading.network_inputs(
        arrays, layout=data.layout, channels=channels, scaling=data.scaling
    )
    np.testing.assert_array_equal(inputs[0], space["mosaic"])


def test_programs_take_what_is_documented():
    programs = [
        (place, words[2] if words[1] == "-m" else words[1], words[3 if words[1] == "-m" else 2 :])
        for place, words in COMMANDS
        if words[0] == "python"
    ]
    assert len(programs) > 15
    done = run(
        ROOT / "tests/fakes/read_commands.py",
        cwd=ROOT,
        input=json.dumps([command[1:] for command in programs]),
    )
    assert done.returncode == 0, done.stderr
    wrong = zip(programs, json.loads(done.stdout), strict=True)
    assert not [f"{place}: {why}" for (place, *_), why in wrong if why]


def test_other_commands():
    """make's targets, pip's extras, and what else there is."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for place, words in COMMANDS:
        if words[0] == "make":
            assert words[1] in targets, place
        elif words[0] == "pip":
            extras = re.findall(r"\.\[(.*)\]", words[-1])
            assert not set(",".join(extras).split(",")) - {"", *setup["options.extras_require"]}
        elif words[0] == "tfds":
            assert words[2] in datasets.BUILDERS, place
        else:
            assert words[0] in {"python", "python3", ".", "srun", "git"}, place


@pytest.mark.parametrize("name", FILES)
def test_settings_exist(name):
    """Every `config.KEY` in the text is one."""
    flat = {key: value for key, value in _flat(default_config())}
    found = re.findall(r"(?<![\w.])config\.((?:[a-z_]+\.)*[a-z_]+)(?![\w(./*])", FILES[name])
    # `checkpoint` is what a checkpoint says of itself; no setting.
    for key in {*found} - {"py", "json", "update", "checkpoint"}:
        known = key in flat or any(other.startswith(f"{key}.") for other in flat)
        assert known or key.startswith("model.") or hasattr(default_config(), key), key


def _flat(config, prefix=""):
    for key, value in config.items():
        yield prefix + key, value
        if hasattr(value, "items"):
            yield from _flat(value, f"{prefix}{key}.")


@pytest.mark.parametrize("name", FILES)
def test_paths_exist(name):
    found = re.findall(
        r"(?<![\w/.])((?:htnet_jax|configs|tools|docs|tests)/[\w/.-]*\w)", FILES[name]
    )
    missing = [path for path in found if not (ROOT / path).exists()]
    # Names of what a reader adds.
    assert not [path for path in missing if not re.search(r"NAME|toy", path)]


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", FILES[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            lines = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
            heads = re.findall(r"^#+ (.*)$", lines, re.MULTILINE)
            assert anchor in {_anchor(head) for head in heads}, target


def _anchor(head):
    """GitHub's name of a heading."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def test_readme_is_short():
    assert FILES["README.md"].count("\n") <= 200


def test_readme_shows_the_table_that_is_printed(folder):
    """Its form; `test_the_demo` compares the numbers."""
    printed = (folder / "printed").read_text().splitlines()
    shown = _table("README.md")
    assert shown[0].split() == printed[0].split()
    assert shown[1].split() == printed[1].split()
    assert len(shown[2]) == len(shown[2].rstrip()) and set(shown[2]) == {"-", " "}

    def notes(lines):
        """Selection -> its note."""
        numbered = dict(re.findall(r"^(\[\d\]) (.*)$", "\n".join(lines), re.MULTILINE))
        rows = re.findall(r"^(final|inner|oracle) (\[\d\])", "\n".join(lines), re.MULTILINE)
        return {name: numbered[mark] for name, mark in rows}

    assert set(notes(printed)) == {"final", "oracle"}
    assert notes(printed).items() <= notes(shown).items()


@pytest.mark.slow
def test_the_demo(tmp_path):
    """The README's table is what `make demo` prints, to the last digit."""
    done = run(
        *("-m", "htnet_jax.train", f"--config={ROOT / 'configs/demo.py'}", "--workdir=demo"),
        "--config.dataset.data_dir=data",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shown = _table("README.md")
    assert done.stdout.splitlines()[: len(shown)] == shown


def _table(name):
    return next(b[3] for b in BLOCKS if b[0] == name and b[3].startswith("selection")).splitlines()
