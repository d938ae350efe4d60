"""The driver of ``patch_corpus.py``: a corpus → patch shards, on all devices of a cluster.

The driver finds the input, begins or resumes the run (:mod:`pipeline.patch.plan`), and has the
cluster do what is left (:mod:`pipeline.patch.run`). ``adopt_shards.py`` runs it, too, with stored
entropies in the place of a model (:mod:`pipeline.adopt`).

A local Ray takes three seconds to start, and torch and what needs it two to load. A thread loads
them while Ray starts, so that modules that need torch are imported within functions here.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from model.patcher import Patcher
from pipeline.cli.command import refuse_lost_output
from pipeline.cli.loading import loading
from pipeline.cli.progress_json import progress_lines
from pipeline.cli.results import print_line
from pipeline.cluster.connect import connect
from pipeline.corpus.inputs import Inputs, find_inputs
from pipeline.corpus.prepared import ID_COLUMN
from pipeline.errors import PipelineError
from pipeline.patch.collect import damaged_files
from pipeline.patch.config import NGRAM, PatchCorpusConfig
from pipeline.patch.record import PatchRun
from pipeline.patch.result import PatchCorpusResult
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.validation import check_held_out, validation_config
from pipeline.storage.lease import held
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import refuse_credentials
from pipeline.storage.run_record import reaching

if TYPE_CHECKING:
    from pipeline.patch.patch_split import Source


def patch_corpus(config: PatchCorpusConfig, console: Console) -> PatchCorpusResult:
    """Patch a corpus, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """

    def load(inputs: Inputs) -> "Source | None":
        from pipeline.patch.plan import load_given_model

        return load_given_model(config)

    return make_shards(config, load, console)


def make_shards(
    config: ShardsConfig, load: "Callable[[Inputs], Source | None]", console: Console
) -> PatchCorpusResult:
    """Make the shards of a corpus, or what is left of them.

    Args:
        load: gives what entropies come from, once the input is known (and may leave files of it
            out); None: an n-gram model that is to be fitted.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """
    config.check()
    refuse_credentials("--output", config.output)
    refuse_lost_output(config.output)
    with reaching("--output"):
        output = OutputDirectory(config.output)
    with progress_lines(config.progress_json), held(output, "--output", console):
        result, inputs = _make_shards(config, load, output, console)
        validation = validation_config(config, inputs, result.threshold)
        if validation is None:
            return result
        print_line(console, f"held-out documents of {', '.join(inputs.held_out)}")
        if config.verify:
            _check_chunks(inputs.held_out_hashes, config, console)
        from pipeline.patch.plan import load_fitted_model, load_given_model

        fitted = validation.scored_with == NGRAM
        model = load_fitted_model(output) if fitted else load_given_model(validation)
        return replace(result, validation=make_shards(validation, lambda inputs: model, console))


def _make_shards(
    config: ShardsConfig,
    load: "Callable[[Inputs], Source | None]",
    output: OutputDirectory,
    console: Console,
) -> tuple[PatchCorpusResult, Inputs]:
    run = None
    if config.overwrite:
        PatchRun.check_removable(output)
    else:
        run = PatchRun.resume(output)
    inputs = find_inputs(config.input, config.format, output=output.url)
    check_held_out(config, inputs)
    given = _load_while_joining(lambda: load(inputs), config.num_workers)
    from pipeline.patch.plan import begin_run, resume_run, scorer_of
    from pipeline.patch.run import patch_left

    inputs.print_unread(console)
    if inputs.all_prepared and config.id_column is None:
        config = replace(config, id_column=ID_COLUMN)
    files = inputs.files
    output.remove_temporary()
    if run is None:
        run, source = begin_run(config, files, given, output, console)
    else:
        run, source = resume_run(run, config, files, given, output, console)
    run.provenance["unread"] = inputs.unread_record()
    if config.id_column is None:
        # The record of an earlier release has none: its documents are called by their places.
        config = replace(config, usual_id=run.provenance.get("ids", {}).get("column"))
    if config.verify:
        _check_chunks(inputs.chunk_hashes, config, console)
    scorer = scorer_of(source, Patcher.from_json(run.provenance["patcher"]), config)
    result = patch_left(run, config, source, scorer, output, console)
    output.remove_temporary()
    return result, inputs


def _load_while_joining(
    load: "Callable[[], Source | None]", workers: int | None
) -> "Source | None":
    """Join Ray, or start one, while a thread loads what the job needs; returns what ``load`` does.

    (Not the other way round: the processes of a local Ray end with the thread that starts them.)
    What ends the joining, an error or Ctrl-C, does not wait for the load, which may be a download.
    """

    def load_all() -> "Source | None":
        given = load()
        from pipeline.patch import run  # noqa: F401

        return given

    pool = ThreadPoolExecutor(1, "load")
    try:
        with loading():
            loaded = pool.submit(load_all)
            connect(workers)
            return loaded.result()
    finally:
        pool.shutdown(wait=False)


def _check_chunks(
    stated: Mapping[str, tuple[str, int]], config: ShardsConfig, console: Console
) -> None:
    """
    Args:
        stated: SHA-256 and size of files of prepared corpora, by URL.

    Raises:
        PipelineError: a file is not what was written; names the first.
    """
    for url, how in damaged_files(stated, console, config.num_workers).items():
        raise PipelineError(
            f"{url}: {how}; restore it, or prepare the corpus anew with --overwrite"
        )
