"""The viewer's page, in Gradio: its components, and what happens when one of them changes.

Texts are shown by :mod:`pipeline.viewer.patched_text`, which makes HTML in which they are
escaped.
"""

import os
import random
import socket
from collections.abc import Callable
from html import escape
from typing import Any

# This comes before the import of Gradio, which would otherwise ask its makers for news.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware

from model.patcher import Patcher
from pipeline.drawing.entropy_svg import CURVE_CSS
from pipeline.drawing.patches_html import DARK_PATCHES, LIGHT_PATCHES
from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.provenance import provenance_of
from pipeline.shards.random_access import MOST_SEARCHED, DocumentIndex
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import refuse_credentials
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.controls import QUICK, controls_of, hide_unused, keep_within, patcher_of
from pipeline.viewer.host_check import HostCheck
from pipeline.viewer.patched_text import (
    MOST_BYTES,
    PatchView,
    error_html,
    ids_html,
    line,
    load,
    repatched,
    view_text,
)

EXAMPLES = {
    "English text": "Daenerys Targaryen is in Game of Thrones, an epic by George R.R. Martin.",
    "Python": "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "many scripts": "Straße, déjà vu, Привет, мир! 你好世界 こんにちは 안녕하세요 مرحبا 👩‍🚀🚀",
    "log lines": "2026-11-25 14:47:23.104 INFO shard 000017 committed (64.1 MB, 12.9 s)\n" * 3,
}
CSS = (
    LIGHT_PATCHES
    + "".join(f".dark {rule}\n" for rule in DARK_PATCHES)
    + CURVE_CSS
    + """
.counts { display: flex; flex-wrap: wrap; gap: 4px 22px; }
.counts b { font-size: 1.15em; }
.note { opacity: .7; } .error { color: #b3261e; font-weight: 600; } .dark .error { color: #ff8a80; }
"""
)
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


def serve(config: PatchViewerConfig, report_url: Callable[[str], None]) -> None:
    """Serve the page until interrupted.

    Args:
        report_url: called with the page's address as soon as it answers.

    Raises:
        ConfigError: a shard set cannot be opened, a model cannot be loaded, or another program
            uses the address.
    """
    config.check()
    port = _free_port(config)
    for model in config.entropy_model:
        load(model)
    page = build_page(config)
    # Gradio asks itself whether it answers, which must not go through a proxy.
    for name in ("no_proxy", "NO_PROXY"):
        here = ("localhost", "127.0.0.1", config.host)
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *here]))
    # Fonts of this machine: the default ones would be fetched from another.
    theme = gr.themes.Default(font=_FONT, font_mono=_MONO)
    _, url, _ = page.launch(
        server_name=config.host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        footer_links=[],
        theme=theme,
        css=CSS,
        app_kwargs={"middleware": [Middleware(HostCheck, host=config.host)]},
    )
    report_url(url)
    page.block_thread()


def _free_port(config: PatchViewerConfig) -> int:
    try:
        with socket.create_server((config.host, config.port)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            f"--port {config.port}: cannot listen on {config.host}: {error.strerror or error}; "
            "choose another, or 0 for any that is free"
        ) from error


def build_page(config: PatchViewerConfig) -> gr.Blocks:
    """Build the page.

    Raises:
        ConfigError: a shard set cannot be opened.
    """
    sets = {url: DocumentIndex(_open(url)) for url in config.shards}
    with gr.Blocks(title="Entropy patches", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            "# Entropy patches\nA patch starts where the next byte is uncertain. The beginning of "
            "a document is a patch by itself, without a byte in it."
        )
        if sets:
            with gr.Tab("Type"):
                _typing(config, page)
            with gr.Tab("Browse"):
                _browsing(config, sets, page)
        else:
            _typing(config, page)
    return page


def _open(url: str) -> ShardSet:
    refuse_credentials("--shards", url)
    try:
        return ShardSet(url)
    except PipelineError as error:
        raise ConfigError(f"--shards {error}") from error


def _outputs(prefix: str) -> list[Any]:
    return [
        gr.HTML(elem_id=f"{prefix}counts"),
        gr.HTML(elem_id=f"{prefix}patches"),
        gr.HTML(elem_id=f"{prefix}curve"),
    ]


def _shown(view: PatchView) -> list[str]:
    return [view.counts_html(), view.patches_html(), view.curve_html()]


def _typing(config: PatchViewerConfig, page: gr.Blocks) -> None:
    """Components for text that the user types."""
    text = gr.Textbox(
        EXAMPLES["English text"],
        lines=4,
        max_lines=16,
        max_length=MOST_BYTES,
        label=f"text (up to {MOST_BYTES:,} bytes)",
        elem_id="text",
    )
    with gr.Row():
        examples = [gr.Button(name, size="sm", min_width=80) for name in EXAMPLES]
    with gr.Row():
        models = list(config.entropy_model)
        model = gr.Dropdown(models, value=models[0], label="entropy model", elem_id="model")
        reset = gr.Checkbox(label="context starts again at newlines", elem_id="reset")
    controls = controls_of(config, "")
    outputs = _outputs("")

    def update(text: str, model: str, reset: bool, *settings: Any) -> list[str]:
        try:
            return _shown(view_text(text or "", model, patcher_of(*settings), reset))
        except (PipelineError, ValueError) as error:
            return [error_html(error), "", ""]

    inputs = [text, model, reset, *controls.values()]
    events = [component.change for component in inputs]
    gr.on([page.load, *events], update, inputs, outputs, **QUICK)
    hide_unused(controls)
    for button, example in zip(examples, EXAMPLES.values(), strict=True):
        button.click(lambda example=example: example, None, text, **QUICK)


def _browsing(config: PatchViewerConfig, sets: dict[str, DocumentIndex], page: gr.Blocks) -> None:
    """Components for documents of shard sets, as stored or re-patched from their entropies."""
    with gr.Row():
        urls = list(sets)
        chosen = gr.Dropdown(urls, value=urls[0], label="shard set", elem_id="set")
        number = gr.Number(0, precision=0, minimum=0, label="document", elem_id="number")
        keep_within(number)
        sample_id = gr.Textbox(label="or its id", max_lines=1, elem_id="sample-id")
    with gr.Row():
        previous, following, somewhere = (
            gr.Button(name, size="sm", min_width=80) for name in ("previous", "next", "random")
        )
    repatch = gr.Checkbox(label="re-patch from the stored entropies", elem_id="repatch")
    with gr.Group(visible=False) as group:
        controls = controls_of(config, "browse-")
    where = gr.HTML(elem_id="browse-where")
    outputs = [where, *_outputs("browse-")]

    def update(url: str, number: float, repatch: bool, *settings: Any) -> list[str]:
        try:
            return _shown_document(sets[url], int(number or 0), repatch, patcher_of(*settings))
        except (PipelineError, ValueError, IndexError) as error:
            return [error_html(error), "", "", ""]

    def find(url: str, sample_id: str) -> Any:
        try:
            match = sets[url].find(sample_id) if sample_id else None
        except PipelineError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        if sample_id and match is None:
            some = f" among the first {MOST_SEARCHED:,}" * (len(sets[url]) > MOST_SEARCHED)
            message = f"no document{some} has this id: {escape(sample_id[:100])}"
            raise gr.Error(message, print_exception=False)
        return gr.skip() if match is None else match

    inputs = [chosen, number, repatch, *controls.values()]
    events = [component.change for component in inputs]
    gr.on([page.load, *events], update, inputs, outputs, **QUICK)
    repatch.change(lambda shown: gr.update(visible=shown), repatch, group, **QUICK)
    hide_unused(controls)
    sample_id.submit(find, [chosen, sample_id], number, **QUICK)

    def step(by: int) -> Callable[[str, float], int]:
        return lambda url, number: (int(number or 0) + by) % max(len(sets[url]), 1)

    previous.click(step(-1), [chosen, number], number, **QUICK)
    following.click(step(1), [chosen, number], number, **QUICK)
    somewhere.click(lambda url: random.randrange(max(len(sets[url]), 1)), chosen, number, **QUICK)


def _shown_document(
    documents: DocumentIndex, number: int, repatch: bool, patcher: Patcher
) -> list[str]:
    if not len(documents):
        raise ConfigError("this set holds no documents")
    document = documents[number]
    data = document.text.encode()
    stored = documents.shards.patcher
    view = PatchView(data, document.entropies, document.patch_lengths, line(stored))
    if repatch and document.entropies is None:
        raise ConfigError("the shards hold no entropies, so they cannot be re-patched")
    if repatch:
        view = repatched(view, patcher)
    place = f"document {number:,} of {len(documents):,}"
    by = provenance_of(documents.shards, patcher if repatch else None)
    return [ids_html([document.sample_id, place, f"patched by: {by}"]), *_shown(view)]
