"""Components for documents of shard sets, as stored or re-patched from their entropies."""

import random
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from model.patcher import Patcher
from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.provenance import provenance_of
from pipeline.shards.random_access import MOST_SEARCHED, DocumentIndex
from pipeline.viewer.comparison import Tokenizers, comparison_html, cut_of_patches
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.controls import (
    QUICK,
    Settings,
    add_rule,
    names_of_rule,
    patcher_of,
)
from pipeline.viewer.links import choice, number, several, switch
from pipeline.viewer.open_set import OpenSet
from pipeline.viewer.patched_text import PatchView, error_html, ids_html, line, repatched

BROWSE = "browse"
"""The link's name for this tab, and what the names of its settings of rules begin with."""
RULE = f"{BROWSE}-"


def add_browse_tab(
    config: PatchViewerConfig,
    sets: dict[str, OpenSet],
    tokenizers: Tokenizers,
    page: gr.Blocks,
) -> None:
    """Add the components to the page that is being built."""
    settings = Settings()
    settings.fields["tab"] = choice([BROWSE])
    notice = gr.HTML(elem_id="browse-notice")
    with gr.Row():
        urls = list(sets)
        chosen = gr.Dropdown(urls, value=urls[0], label="shard set", elem_id="set")
        settings.add("set", chosen, choice(urls))
        place = gr.Number(0, precision=0, minimum=0, label="document", elem_id="number")
        settings.add("document", place, number(0, None))
        sample_id = gr.Textbox(label="or its id", max_lines=1, elem_id="sample-id")
    with gr.Row():
        previous, following, somewhere = (
            gr.Button(name, size="sm", min_width=80) for name in ("previous", "next", "random")
        )
    label = "re-patch from the stored entropies"
    repatch = settings.add("repatch", gr.Checkbox(label=label, elem_id="repatch"), switch())
    with gr.Group(visible=False) as group:
        with gr.Row():
            add_rule(settings, config, RULE)
        label = "beside the stored patches"
        settings.add("beside", gr.Checkbox(label=label, elem_id="beside"), switch())
    if tokenizers.names:
        name = f"{BROWSE}-tokenizers"
        boxes = gr.CheckboxGroup(tokenizers.names, label="compare with tokenizers", elem_id=name)
        settings.add(name, boxes, several(tokenizers.names))
    where, link = gr.HTML(elem_id="browse-where"), gr.HTML(elem_id="browse-link")
    outputs = [gr.HTML(elem_id=f"browse-{name}") for name in ("counts", "patches", "curve")]

    def update(values: dict[str, Any]) -> list[str]:
        shown = settings.link({name: values[name] for name in _deciding(values)} | {"tab": BROWSE})
        try:
            documents = sets[values["set"]]
            return [shown, *documents.ask(lambda found: _show(values, found, tokenizers))]
        except (PipelineError, ValueError, IndexError) as error:
            return [shown, error_html(error), "", "", ""]

    def find(url: str, sample_id: str) -> Any:
        try:
            match = sets[url].ask(lambda found: found.find(sample_id)) if sample_id else None
        except PipelineError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        if sample_id and match is None:
            some = f" among the first {MOST_SEARCHED:,}" * (len(sets[url]) > MOST_SEARCHED)
            message = f"no document{some} has this id: {escape(sample_id[:100])}"
            raise gr.Error(message, print_exception=False)
        return gr.skip() if match is None else match

    settings.show(page, update, [link, where, *outputs], notice)
    repatch.change(lambda wanted: gr.update(visible=wanted), repatch, group, **QUICK)
    sample_id.submit(find, [chosen, sample_id], place, **QUICK)

    def step(by: int) -> Callable[[str, float], int]:
        return lambda url, number: (int(number or 0) + by) % max(len(sets[url]), 1)

    previous.click(step(-1), [chosen, place], place, **QUICK)
    following.click(step(1), [chosen, place], place, **QUICK)
    somewhere.click(lambda url: random.randrange(max(len(sets[url]), 1)), chosen, place, **QUICK)


def _deciding(values: Mapping[str, Any]) -> list[str]:
    """The names of the values that decide what is shown."""
    names = ["set", "document", "repatch"]
    names += [*names_of_rule(values, RULE), "beside"] if values["repatch"] else []
    return names + [f"{BROWSE}-tokenizers"] * bool(values.get(f"{BROWSE}-tokenizers"))


def _show(values: Mapping[str, Any], documents: DocumentIndex, tokenizers: Tokenizers) -> list[str]:
    """The place of a document, counts, patches and curves."""
    patcher = patcher_of(values, RULE) if values["repatch"] else None
    place, stored = show_document(documents, int(values["document"] or 0), patcher)
    view = stored if patcher is None else _repatched(stored, patcher)
    chosen = values.get(f"{BROWSE}-tokenizers", [])
    beside = patcher is not None and values["beside"]
    if not chosen and not beside:
        return [place, *view.shown()]
    cuts = [cut_of_patches(view, None, str(patcher or documents.shards.patcher))]
    if beside:
        cuts.append(cut_of_patches(stored, None, f"stored: {documents.shards.patcher}"))
    tokens, problems = tokenizers.cuts(view.data.decode(), chosen)
    table, aligned = comparison_html(view.data, [*cuts, *tokens])
    return [place, problems + table, aligned, view.curve_html()]


def show_document(
    documents: DocumentIndex, number: int, patcher: Patcher | None
) -> tuple[str, PatchView]:
    """HTML with the name, place and provenance of a document; and its stored patches.

    Args:
        patcher: the rule by which it is re-patched; None if it is not.

    Raises:
        ConfigError: the set holds no documents.
        IndexError: it holds not so many.
        PipelineError: the document's shard is damaged or cannot be read.
    """
    if not len(documents):
        raise ConfigError("this set holds no documents")
    document = documents[number]
    rule = line(documents.shards.patcher)
    view = PatchView(document.text.encode(), document.entropies, document.patch_lengths, rule)
    place = f"document {number:,} of {len(documents):,}"
    by = provenance_of(documents.shards, patcher)
    return ids_html([document.sample_id, place, f"patched by: {by}"]), view


def _repatched(view: PatchView, patcher: Patcher) -> PatchView:
    if view.h_T is None:
        raise ConfigError("the shards hold no entropies, so they cannot be re-patched")
    return repatched(view, patcher)
