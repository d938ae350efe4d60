"""The validation set of a prepared corpus: held-out documents, patched into a set of their own.

It is made after the training set, below its place (``OUTPUT/validation``), with the model and the
threshold of that: an n-gram model is not fitted, and a threshold not calibrated, on held-out text.
It is a shard set like any other; a rerun of the command continues both.
"""

from dataclasses import replace

from pipeline.corpus.inputs import Inputs
from pipeline.corpus.prepared import ID_COLUMN
from pipeline.errors import PipelineError
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.shards_config import ShardsConfig
from pipeline.shards.manifest import validation_of
from pipeline.storage.listing import list_files


def validation_config(
    config: ShardsConfig, inputs: Inputs, threshold: float | None
) -> PatchCorpusConfig | None:
    """The configuration by which the held-out documents are patched; None if there are none, or
    they are not wanted.

    Args:
        config: that of the training set.
        inputs: of the training set.
        threshold: of the training set, given or calibrated.
    """
    if not isinstance(config, PatchCorpusConfig) or config.no_validation or not inputs.held_out:
        return None
    return replace(
        config,
        input=tuple(inputs.held_out),
        output=validation_of(config.output),
        format="auto",
        id_column=config.id_column or ID_COLUMN,
        threshold=threshold,
        target_patch_size=None,
        no_validation=True,
    )


def check_held_out(config: ShardsConfig, inputs: Inputs) -> None:
    """Look at the validation files before the training set is patched, which may take days.

    Raises:
        PipelineError: one of them is not what was written.
    """
    if not isinstance(config, PatchCorpusConfig) or config.no_validation:
        return
    for url, chunk in inputs.held_out.items():
        sizes = [file.size for file in list_files(url).files]
        if sizes != [chunk["file_bytes"]]:
            raise PipelineError(
                f"{url}: is not the file of {chunk['file_bytes']:,} bytes that was written; "
                "restore it, prepare the corpus anew with --overwrite, or give --no-validation"
            )
