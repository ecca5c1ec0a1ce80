"""Reports what is wrong with a built data set, and which folds it touches.

python tools/audit_dataset.py --dataset=megc2019 --manual_dir=FOLDER --data_dir=DIR

Looks for clips that are there twice (within a subject, or in two folds: a leak), labels that
contradict each other, subjects under two names, empty flow, landmarks that were not found, and
counts that differ from the published ones; see docs/datasets.md. Builds the data set first if DIR
does not hold it. Exit status: 0 no problem (notes do not count), 1 problems, 2 wrong use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags

from htnet_jax import foreign
from htnet_jax.errors import UserError, run_command

_DATASET = flags.DEFINE_string("dataset", None, "Its name; docs/datasets.md lists them.")
_CONFIG = flags.DEFINE_string(
    "config", "", "The builder config, such as release or tvl1_28; default: the data set's own."
)
_LABELS = flags.DEFINE_string(
    "labels", "", "The label set, such as megc3 or own; default: the data set's own."
)
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Source files; needed only for building.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where built data are; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_PROTOCOL = flags.DEFINE_string("protocol", "loso", "Whose folds to look at: loso, lodo or kfold.")
_PROTOCOL_FOLDS = flags.DEFINE_integer("protocol_folds", 5, "Folds of kfold.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of kfold's split, as config.seed of a run.")
_SIMILARITY = flags.DEFINE_float(
    "similarity",
    None,
    "From this similarity on, two flows are one clip's (up to 1). Default: see docs/datasets.md.",
    lower_bound=0,
    upper_bound=1,
)
_JSON = flags.DEFINE_string("json", None, "File for all of it; '-' prints it instead of the text.")
_CSV = flags.DEFINE_string("csv", None, "File for the findings, one a row.")


def main(argv: Sequence[str]) -> int:
    """Audits the data set that the flags describe; returns the exit status."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _DATASET.value:
        raise UserError(
            "give --dataset=NAME, for example:\n"
            "  python tools/audit_dataset.py --dataset=megc2019 --manual_dir=FOLDER --data_dir=DIR"
        )
    _check_outputs()
    from htnet_jax.datasets import checks, loading, similarity
    from htnet_jax.evaluation import protocols
    from htnet_jax.io import write_atomically

    if _PROTOCOL.value not in protocols.PROTOCOLS:
        known = ", ".join(protocols.PROTOCOLS)
        raise UserError(f"--protocol={_PROTOCOL.value} is unknown; use one of {known}")
    arrays, folder = loading.prepare(
        _DATASET.value,
        config=_CONFIG.value,
        manual_dir=_MANUAL_DIR.value,
        data_dir=_DATA_DIR.value,
        labels=_LABELS.value,
    )
    subjects = protocols.unique_subjects(arrays.subjects, arrays.sources)
    folds = protocols.splits(
        _PROTOCOL.value, subjects, arrays.sources, count=_PROTOCOL_FOLDS.value, seed=_SEED.value
    )
    threshold = similarity.SAME if _SIMILARITY.value is None else _SIMILARITY.value
    checkup = checks.check(arrays, subjects, folds, loading.recorded(folder), threshold=threshold)
    settings = {"protocol": _PROTOCOL.value, "folds": len(folds), "similarity_from": threshold}
    text = json.dumps(checks.as_json(checkup, arrays, settings), indent=2) + "\n"
    if _JSON.value == "-":
        print(text, end="")
    else:
        words = protocols.PROTOCOLS[_PROTOCOL.value]
        print(checks.as_text(checkup, arrays, f"{words}, {len(folds)} folds"))
    table = checks.as_csv(checkup.findings)
    for name, content in ((_JSON.value, text), (_CSV.value, table)):
        if name and name != "-":
            path = foreign.expanded(name)
            write_atomically(path, lambda file, content=content: file.write(content.encode()))
    return 1 if checkup.problems else 0


def _check_outputs() -> None:
    """Checked before the work, so that none is lost."""
    for name in (_JSON.value, _CSV.value):
        if name and name != "-":
            path = foreign.expanded(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{name}: cannot be written ({error.strerror})") from error
            if path.is_dir():
                raise UserError(f"{name}: is a folder; give a file name")
    if _CSV.value == "-":
        raise UserError("--csv needs a file name; --json=- prints everything")


if __name__ == "__main__":
    run_command(main)
