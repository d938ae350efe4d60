"""The viewer's page, in Gradio: its components, and what happens when one of them changes.

Texts are shown by :mod:`pipeline.viewer.patched_text`, which makes HTML in which they are
escaped.
"""

import os
from collections.abc import Callable
from typing import Any

# This comes before the import of Gradio, which would otherwise ask its makers for news.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware

from pipeline.drawing.aligned_html import ALIGNED_CSS
from pipeline.drawing.entropy_svg import CURVE_CSS
from pipeline.drawing.patches_html import DARK_PATCHES, LIGHT_PATCHES
from pipeline.drawing.scrolling import scrolling_css
from pipeline.viewer.address import free_port
from pipeline.viewer.body_limit import BodyLimit
from pipeline.viewer.browse_tab import BROWSE, add_browse_tab
from pipeline.viewer.comparison import Tokenizers
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.controls import QUICK
from pipeline.viewer.host_check import HostCheck
from pipeline.viewer.open_set import OpenSet
from pipeline.viewer.patched_text import load
from pipeline.viewer.type_tab import add_type_tab

CSS = (
    LIGHT_PATCHES
    + "".join(f".dark {rule}\n" for rule in DARK_PATCHES)
    + CURVE_CSS
    + ALIGNED_CSS
    + scrolling_css(".curve, .compared")
    + """
.curve, .compared { --card: var(--body-background-fill); --shade: #1f27334d; }
.dark .curve, .dark .compared { --shade: #c3cddc55; }
.compared { border-collapse: collapse; display: block; }
.compared, .compared * { border: 0 !important; }
.compared tr.compared-row > * { text-align: right; padding: 2px 12px 2px 0; }
.compared tr.compared-row > :nth-child(2) { text-align: left; }
.compared tr.compared-row > :nth-child(3) { white-space: nowrap; }
.compared th { opacity: .7; font-size: .85em; font-weight: normal; vertical-align: bottom; }
@media (max-width: 500px) {
  .compared { font-size: .88em; }
  .compared tr.compared-row > * { padding-right: 8px; }
}
.counts { display: flex; flex-wrap: wrap; gap: 4px 22px; }
.counts b { font-size: 1.15em; }
.note { opacity: .7; } .note a { color: inherit !important; padding: 0; }
:is(#notice, #browse-notice):not(:has(.error)) { display: none; }
.min_value, .max_value, [role=tab].selected { color: var(--body-text-color) !important; }
.error { color: #b3261e; font-weight: 600; } .dark .error { color: #ff8a80; }
input[role=combobox] { padding-right: 34px !important; text-overflow: ellipsis; }
input:is([type=range], [type=checkbox]):focus-visible {
  outline: 2px solid currentColor !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) {
  *, ::before, ::after { animation-duration: 1ms !important; transition-duration: 1ms !important; }
}
"""
)
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


def serve(config: PatchViewerConfig, report_url: Callable[[str], None]) -> None:
    """Serve the page until interrupted.

    Args:
        report_url: called with the page's address as soon as it answers.

    Raises:
        ConfigError: a shard set cannot be opened, a model cannot be loaded, or the address cannot
            be listened on.
    """
    config.check()
    port = free_port(config)
    for model in config.entropy_model:
        load(model)
    page = build_page(config)
    # Gradio asks itself whether it answers, which must not go through a proxy.
    for name in ("no_proxy", "NO_PROXY"):
        here = ("localhost", "127.0.0.1", config.host)
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *here]))
    # Fonts of this machine: the default ones would be fetched from another.
    theme = gr.themes.Default(font=_FONT, font_mono=_MONO)
    checks = [] if config.public else [Middleware(HostCheck, host=config.host)]
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
        app_kwargs={"middleware": [*checks, Middleware(BodyLimit)]},
    )
    report_url(url)
    page.block_thread()


def build_page(config: PatchViewerConfig) -> gr.Blocks:
    """Build the page.

    Raises:
        ConfigError: a shard set cannot be opened, or a tokenizer not be loaded.
    """
    sets = {url: OpenSet(url) for url in config.shards}
    tokenizers = Tokenizers(config.tokenizers)
    with gr.Blocks(title="Entropy patches", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            "# Entropy patches\nA patch starts where the next byte is uncertain. The beginning of "
            "a document is a patch by itself, without a byte in it."
        )
        if sets:
            with gr.Tabs() as tabs:
                with gr.Tab("Type"):
                    add_type_tab(config, tokenizers, page)
                with gr.Tab("Browse", id=BROWSE):
                    add_browse_tab(config, sets, tokenizers, page)
            page.load(_opened_tab, None, tabs, **QUICK)
        else:
            add_type_tab(config, tokenizers, page)
    return page


def _opened_tab(request: gr.Request) -> Any:
    """Choose the tab that the link names."""
    return gr.Tabs(selected=BROWSE) if request.query_params.get("tab") == BROWSE else gr.skip()
