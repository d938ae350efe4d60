"""Held-out texts that models were not trained for: the same text with noise, and other scripts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.evaluate.tasks.noise import NOISES, noised
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically
from train.compare.other_scripts import translations

OTHER_SCRIPTS = "other_scripts"
KINDS = (*NOISES, OTHER_SCRIPTS)
"""The names that an experiment's ``noise`` may hold. The last is no noise of the held-out text, but
text of its own, in scripts other than Latin; see :mod:`train.compare.other_scripts`."""


def write_noised(
    documents: Iterable[tuple[str, str]], folder: Path, kinds: Sequence[str]
) -> dict[str, Path]:
    """Write a JSONL file, with ``id`` and ``text``, for each kind.

    The noise of a document depends on its id and the kind alone, so that all runs and experiments
    are measured on the same bytes.

    Args:
        documents: id and text of the documents without noise.
        kinds: of :data:`KINDS`.

    Returns:
        The paths of the files, by kind.

    Raises:
        ConfigError: there is no text in other scripts on this machine.
    """
    clean, paths = list(documents), {}
    for kind in kinds:
        if kind == OTHER_SCRIPTS:
            changed = list(translations().items())
        else:
            changed = [(name, noised(text, kind, name)) for name, text in clean]
        lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in changed]
        paths[kind] = folder / f"{kind}.jsonl"
        write_atomically(*checkpoint_filesystem(str(paths[kind])), "".join(lines).encode())
    return paths
