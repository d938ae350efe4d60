"""The viewer's settings of a boundary rule, in Gradio."""

from typing import Any

import gradio as gr

from model.patcher import Patcher
from model.rules import SETTINGS, find_rule, plain_text_rules
from pipeline.viewer.config import LEAST_THRESHOLD, MOST_THRESHOLD, PatchViewerConfig

QUICK: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",  # what was typed meanwhile counts
    "api_visibility": "private",
}
"""Arguments of all events: they are answered at once, and for this page alone."""


def controls_of(config: PatchViewerConfig, prefix: str) -> dict[str, Any]:
    """The settings of a rule, as :func:`patcher_of` takes them; those that the rule does not use
    are hidden. Their ids begin with ``prefix``."""
    nats = (LEAST_THRESHOLD, MOST_THRESHOLD)
    sliders = {
        "threshold": ("threshold", "threshold (nats)", (*nats, config.threshold), 0.001),
        "threshold_add": ("rise", "rise (nats)", (*nats, 0.5), 0.001),
        "patch_size": ("size", "patch size (tokens)", (1, 32, 4.5), 0.5),
        "longest": ("longest", "longest patch (tokens; 0: any)", (0, 64, 0), 1),
    }
    shown, rules = _used(config.rule), list(plain_text_rules())
    with gr.Row():
        rule = gr.Dropdown(rules, value=config.rule, label="rule", elem_id=f"{prefix}rule")
        controls: dict[str, Any] = {"rule": rule}
        for name, (id_, label, values, step) in sliders.items():
            slider = gr.Slider(
                *values,
                step=step,
                label=label,
                elem_id=f"{prefix}{id_}",
                visible=shown.get(name, True),
            )
            keep_within(slider)
            controls[name] = slider
    return controls


def keep_within(number: Any) -> None:
    """Replace a typed number beyond a component's limits by the limit, as its slider shows it."""
    least, most = number.minimum, number.maximum

    def preprocess(typed: float | None) -> float:
        value = max(typed or 0, least)
        return value if most is None else min(value, most)

    number.preprocess = preprocess


def _used(rule: str) -> dict[str, bool]:
    """Settings by name, with true for those that the rule uses."""
    return {name: name in find_rule(rule).settings for name in SETTINGS}


def _show_used(rule: str) -> list[Any]:
    return [gr.update(visible=visible) for visible in _used(rule).values()]


def patcher_of(
    rule: Any, threshold: float, threshold_add: float, patch_size: float, longest: float
) -> Patcher:
    """The rule that the controls stand for."""
    used = _used(rule)
    return Patcher(
        rule=rule,
        threshold=threshold if used["threshold"] else None,
        threshold_add=threshold_add if used["threshold_add"] else None,
        patch_size=patch_size if used["patch_size"] else None,
        max_patch_length=int(longest) or None,
    )


def hide_unused(controls: dict[str, Any]) -> None:
    """Hide the settings that a rule does not use, whenever another rule is chosen."""
    changed = [controls[name] for name in SETTINGS]
    controls["rule"].change(_show_used, controls["rule"], changed, **QUICK)
