"""Components for text that the user types: its patches, and what else cuts it, side by side."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from pipeline.errors import PipelineError
from pipeline.viewer.comparison import Cut, Tokenizers, comparison_html, cut_of_patches
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.controls import NARROWEST, QUICK, Settings, add_rule, names_of_rule, patcher_of
from pipeline.viewer.links import choice, several, switch, text
from pipeline.viewer.patched_text import MOST_BYTES, PatchView, error_html, view_text

EXAMPLES = {
    # About 4.5 bytes per patch, as in training, with the threshold that the page begins with.
    "English text": "A patch starts where the next byte is difficult to predict. Names such as "
    "Daenerys Targaryen are therefore divided into several short patches, and common words become "
    "longer patches. The large model runs once for each of them, so that most of the computation "
    "is done where it is needed.",
    "Python": "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "many scripts": "Straße, déjà vu, Привет, мир! 你好世界 こんにちは 안녕하세요 مرحبا 👩‍🚀🚀",
    "log lines": "2026-11-25 14:47:23.104 INFO shard 000017 committed (64.1 MB, 12.9 s)\n" * 3,
}
OTHER = "other-"
"""Before the names of the second patches' settings."""


def add_type_tab(config: PatchViewerConfig, tokenizers: Tokenizers, page: gr.Blocks) -> None:
    """Add the components to the page that is being built."""
    settings = Settings()
    notice = gr.HTML(elem_id="notice")
    box = gr.Textbox(
        EXAMPLES["English text"],
        lines=4,
        max_lines=16,
        max_length=MOST_BYTES,
        label=f"text (up to {MOST_BYTES:,} bytes)",
        elem_id="text",
    )
    settings.add("text", box, text(MOST_BYTES))
    with gr.Row():
        examples = [gr.Button(name, size="sm", min_width=110) for name in EXAMPLES]
    _add_patches(settings, config, "")
    with gr.Accordion("compare with …", open=bool(tokenizers.names), elem_id="compare"):
        if tokenizers.names:
            names = tokenizers.names
            boxes = gr.CheckboxGroup(names, value=names, label="tokenizers", elem_id="tokenizers")
            settings.add("tokenizers", boxes, several(names))
        label = "patches of another model or rule"
        other = settings.add("other", gr.Checkbox(label=label, elem_id="other"), switch())
        with gr.Group(visible=False) as group:
            _add_patches(settings, config, OTHER)
    link = gr.HTML(elem_id="link")
    outputs = [gr.HTML(elem_id=name) for name in ("counts", "patches", "curve")]

    def update(values: dict[str, Any]) -> list[str]:
        shown = settings.link({name: values[name] for name in _deciding(values)})
        try:
            return [shown, *_show(values, tokenizers)]
        except (PipelineError, ValueError) as error:
            return [shown, error_html(error), "", ""]

    settings.show(page, update, [link, *outputs], notice)
    other.change(lambda wanted: gr.update(visible=wanted), other, group, **QUICK)
    for button, example in zip(examples, EXAMPLES.values(), strict=True):
        button.click(lambda example=example: example, None, box, **QUICK)


def _add_patches(settings: Settings, config: PatchViewerConfig, prefix: str) -> None:
    """A model and a rule."""
    with gr.Row():
        models, name = list(config.entropy_model), f"{prefix}model"
        label = "entropy model"
        model = gr.Dropdown(models, value=models[0], label=label, elem_id=name, min_width=NARROWEST)
        settings.add(name, model, choice(models))
        add_rule(settings, config, prefix)
    name = f"{prefix}reset"
    reset = gr.Checkbox(label="context starts again at newlines", elem_id=name)
    settings.add(name, reset, switch())


def _deciding(values: Mapping[str, Any]) -> list[str]:
    """The names of the values that decide what is shown."""
    names = ["text", *_names_of_patches(values, "")]
    names += ["tokenizers"] if "tokenizers" in values else []
    return [*names, "other", *(_names_of_patches(values, OTHER) if values["other"] else [])]


def _names_of_patches(values: Mapping[str, Any], prefix: str) -> list[str]:
    return [f"{prefix}model", f"{prefix}reset", *names_of_rule(values, prefix)]


def _show(values: Mapping[str, Any], tokenizers: Tokenizers) -> list[str]:
    """Counts, patches and curves."""
    prefixes = ["", OTHER] if values["other"] else [""]
    views = [_view(values, prefix) for prefix in prefixes]
    chosen = values.get("tokenizers", [])
    if len(views) == 1 and not chosen:
        return views[0].shown()
    data = views[0].data
    cuts = [_cut(view, values, prefix) for view, prefix in zip(views, prefixes, strict=True)]
    tokens, problems = tokenizers.cuts(data.decode(), chosen)
    table, aligned = comparison_html(data, [*cuts, *tokens])
    curves = "".join(
        f'<p class="note">{key}</p>{view.curve_html()}'
        for key, view in zip("AB", views, strict=False)
    )
    return [problems + table, aligned, curves]


def _view(values: Mapping[str, Any], prefix: str) -> PatchView:
    model, reset = values[f"{prefix}model"], values[f"{prefix}reset"]
    return view_text(values["text"] or "", model, patcher_of(values, prefix), reset)


def _cut(view: PatchView, values: Mapping[str, Any], prefix: str) -> Cut:
    patcher = patcher_of(values, prefix)
    model = values[f"{prefix}model"] if patcher.reads_entropies else None
    reset = ", context starts again at newlines" * bool(model and values[f"{prefix}reset"])
    return cut_of_patches(view, model, f"{patcher}{reset}")
