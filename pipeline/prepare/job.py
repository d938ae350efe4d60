"""The driver of ``prepare_corpus.py``: finds the input, begins or resumes the preparation, and has
the cluster do what is left of it (:mod:`pipeline.prepare.run`)."""

from dataclasses import replace

from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.cli.progress_json import progress_lines
from pipeline.cli.results import print_line
from pipeline.cluster.connect import connect
from pipeline.cluster.plan_splits import plan_files, splits_of
from pipeline.corpus.documents import rejected_before
from pipeline.corpus.formats import known_format
from pipeline.corpus.ids import left_behind
from pipeline.corpus.inputs import Inputs, find_inputs
from pipeline.corpus.named import Corpus, list_corpus
from pipeline.corpus.prepared import read_prepared_manifest
from pipeline.corpus.splits import whole_file
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.plan import Downloads, Preparation, plan, remove_entries
from pipeline.prepare.result import PrepareCorpusResult
from pipeline.prepare.run import Stages, finished
from pipeline.storage.hub import is_hub_file
from pipeline.storage.lease import held
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import refuse_credentials
from pipeline.storage.run_record import MANIFEST, changed_file_error, changed_files, reaching
from pipeline.storage.tokenizer_files import (
    download_tokenizer,
    downloaded_tokenizer,
    find_tokenizer,
)


def prepare_corpus(config: PrepareCorpusConfig, console: Console) -> PrepareCorpusResult:
    """Prepare a corpus, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """
    config.check()
    corpus = config.find_corpus()
    for flag, url in (("--output", config.output), ("--downloads", config.downloads)):
        if url is not None:
            refuse_credentials(flag, url)
            refuse_lost_output(url, flag)
    with reaching("--output"):
        output = OutputDirectory(config.output)
    with progress_lines(config.progress_json), held(output, "--output", console):
        result = _prepare_corpus(config, corpus, output, console)
    rejects = 0 if result.manifest is None else result.manifest["counts"]["rejects"]
    if rejects and config.on_bad_document == "fail":
        result.failures.append(rejected_before(rejects))
    return result


def _prepare_corpus(
    config: PrepareCorpusConfig, corpus: Corpus | None, output: OutputDirectory, console: Console
) -> PrepareCorpusResult:
    preparation = None
    if config.retry_failed and output.exists(MANIFEST):
        failed = any(source["error"] for source in read_prepared_manifest(output)["sources"])
        config = replace(config, overwrite=config.overwrite or failed)
    if config.overwrite:
        Preparation.check_removable(output)
    else:
        preparation = Preparation.resume(output)
    inputs = _inputs(preparation, corpus, config, output, console)
    inputs.print_unread(console)
    files = inputs.files
    tokenizer = _tokenizer(config, output)
    if preparation is not None:
        _check_same(preparation, files, config, output)
        if output.exists(MANIFEST):
            if tokenizer:
                download_tokenizer(str(config.tokenizer), tokenizer, output)
            return finished(output, read_prepared_manifest(output))
        console.print(f"continuing the run in {output.url}", highlight=False)
        preparation = preparation.continued(config)
    connect(config.num_workers)
    output.remove_temporary()
    work = Stages(config, output, console, inputs)
    if preparation is None:
        output.check_writable()
        if config.downloads:
            Downloads(files, config.content()).begin(output)
            files, unreachable = work.download(files, OutputDirectory(config.downloads))
            if unreachable:
                return PrepareCorpusResult(output.url, None, unreachable)
        preparation = _begin(files, corpus, config, output, console)
    if tokenizer:
        download_tokenizer(str(config.tokenizer), tokenizer, output)
    return work.shuffle(preparation)


def _inputs(
    preparation: Preparation | None,
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
    console: Console,
) -> Inputs:
    if corpus is None:
        return find_inputs(config.input, config.input_format, output=output.url)
    if preparation is not None:  # at the commit that it began with
        return Inputs(preparation.files)
    begun = None if config.overwrite else Downloads.resume(output)
    if begun is None:
        files, left_out = list_corpus(corpus)
        Inputs(unread=left_out).print_unread(console)
        return Inputs(files)
    begun.check_settings(f"--output {output.url}", config.content())
    return Inputs(begun.files)


def _tokenizer(config: PrepareCorpusConfig, output: OutputDirectory) -> list[InputFile]:
    """The files of the tokenizer that is asked for, unless they are there."""
    if config.tokenizer is None:
        return []
    if not config.overwrite and downloaded_tokenizer(output) == config.tokenizer:
        return []
    return find_tokenizer(config.tokenizer)


def _check_same(
    preparation: Preparation,
    files: list[InputFile],
    config: PrepareCorpusConfig,
    output: OutputDirectory,
) -> None:
    where = f"--output {output.url}"
    preparation.check_settings(where, config.content())
    for file in changed_files(where, preparation.files, files):
        raise changed_file_error(where, file)


def _begin(
    files: list[InputFile],
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
    console: Console,
) -> Preparation:
    """Plan a new run, and record it."""
    kind = corpus.format if corpus else config.input_format
    columns, flag = config.columns(corpus), "--input-format"
    if any(map(is_hub_file, files)):  # their content is not at hand: each is read as a whole
        splits = [whole_file(file, known_format(file, kind, flag)) for file in files]
    else:
        plans = plan_files(files, kind, columns, config.sort_bytes, format_flag=flag)
        splits = splits_of(plans)
        if note := left_behind(plans, columns):
            print_line(console, note)
    preparation = plan(files, splits, columns, config)
    if config.overwrite:  # only now: a wrong flag must not cost the earlier result
        Preparation.remove(output)
    remove_entries(output)  # of a run whose record somebody removed
    preparation.begin(output)
    return preparation
