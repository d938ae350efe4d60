"""The viewer's settings in Gradio: of a boundary rule, and of an entropy model with one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from model.patcher import Patcher
from model.rules import SETTINGS, find_rule, plain_text_rules
from pipeline.errors import ConfigError
from pipeline.viewer.config import LEAST_THRESHOLD, MOST_THRESHOLD, PatchViewerConfig
from pipeline.viewer.links import Field, choice, link_html, number, read_link
from pipeline.viewer.patched_text import error_html

QUICK: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",  # what was typed meanwhile counts
    "api_visibility": "private",
}
"""Arguments of all events: they are answered at once, and for this page alone."""

NUMBERED = (
    "(...values) => [...values.slice(0, -1), (window.questions = (window.questions || 0) + 1)]"
)
"""JavaScript that replaces an event's last value by the number of the question."""


@dataclass
class Settings:
    """Components that decide what a tab shows, by the names that links give them."""

    components: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Field] = field(default_factory=dict)

    def add(self, name: str, component: Any, field: Field) -> Any:
        """Add a component; returns it."""
        self.components[name], self.fields[name] = component, field
        return component

    def show(
        self, page: gr.Blocks, update: Callable[..., list[Any]], outputs: list[Any], notice: Any
    ) -> None:
        """Let the outputs be what ``update`` makes of the components' values (by name), from the
        beginning on, which the link decides with which the page was opened.

        Args:
            update: returns a value for each output.
            notice: shows what is wrong with the link.
        """
        inputs = list(self.components.values())

        def follow(request: gr.Request) -> list[Any]:
            values, problems = read_link(self.fields, dict(request.query_params))
            told = "".join(error_html(ConfigError(problem)) for problem in problems)
            changes = (
                gr.update(value=values[name]) if name in values else gr.skip()
                for name in self.components
            )
            return [*changes, told]

        # A link changes several components at once. Each change asks with the values so far, and
        # the browser sends these questions side by side: they may arrive in any order, so that an
        # earlier one may come last, and must not be answered any more.
        asked, answered = gr.Number(0, minimum=0, visible=False), gr.State(0)

        def shown(*given: Any) -> list[Any]:
            *values, last, number = given
            if number < last:
                return [gr.skip() for _ in [*outputs, answered]]
            return [*update(dict(zip(self.components, values, strict=True))), number]

        both = [*inputs, answered, asked], [*outputs, answered]
        in_turn = {**QUICK, "concurrency_id": f"shown {id(self)}", "concurrency_limit": 1}
        page.load(follow, None, [*inputs, notice], **QUICK).then(
            shown, *both, js=NUMBERED, **in_turn
        )
        gr.on([component.change for component in inputs], shown, *both, js=NUMBERED, **in_turn)

    def link(self, values: Mapping[str, Any]) -> str:
        """HTML with a link to these values, by name."""
        return link_html(self.fields, values)


SLIDERS = {
    "threshold": ("threshold", "threshold (nats)"),
    "threshold_add": ("rise", "rise (nats)"),
    "patch_size": ("size", "patch size (tokens)"),
}
"""By setting of a rule: the name that ids and links have for it, and its label."""
assert SLIDERS.keys() == set(SETTINGS)
LONGEST = "longest"
NARROWEST = 220
"""Pixels of a setting: as many stand beside each other as have room, and fill their row."""


def add_rule(settings: Settings, config: PatchViewerConfig, prefix: str) -> None:
    """Add the settings of a rule to the row that is being built, as :func:`patcher_of` takes them;
    those that the chosen rule does not use are hidden. Their names and ids begin with
    ``prefix``."""
    nats = (LEAST_THRESHOLD, MOST_THRESHOLD)
    ranges: dict[str, tuple[float, float, float, float]] = {
        "threshold": (*nats, config.threshold, 0.001),
        "threshold_add": (*nats, 0.5, 0.001),
        "patch_size": (1, 32, 4.5, 0.5),
    }
    used, rules = _used(config.rule), list(plain_text_rules())
    name = f"{prefix}rule"
    dropdown = gr.Dropdown(
        rules, value=config.rule, label="rule", elem_id=name, min_width=NARROWEST
    )
    rule = settings.add(name, dropdown, choice(rules))
    sliders = []
    for setting, (name, label) in SLIDERS.items():
        least, most, value, step = ranges[setting]
        slider = gr.Slider(
            least,
            most,
            value,
            step=step,
            label=label,
            elem_id=f"{prefix}{name}",
            visible=used[setting],
            min_width=NARROWEST,
        )
        sliders.append(settings.add(f"{prefix}{name}", slider, number(least, most)))
    name = f"{prefix}{LONGEST}"
    label = "longest patch (tokens; 0: any)"
    longest = gr.Slider(
        0, 64, 0, step=1, precision=0, label=label, elem_id=name, min_width=NARROWEST
    )
    settings.add(name, longest, number(0, 64))
    rule.change(lambda rule: _show_used(rule), rule, sliders, **QUICK)


def _within(component: Any, typed: float | None) -> float:
    """Replace a typed number beyond a component's limits by the limit, as its slider shows it; and
    one between its numbers by the nearest, as a link with this number would."""
    value = max(typed or 0, component.minimum)
    value = value if component.maximum is None else min(value, component.maximum)
    return float(gr.Number.round_to_precision(value, component.precision))


# Of the classes, because Gradio makes a component anew for each session that changes it.
for _class in (gr.Slider, gr.Number):
    _class.preprocess = _within  # type: ignore[method-assign, assignment]


def _used(rule: str) -> dict[str, bool]:
    """Settings by name, with true for those that the rule uses."""
    return {name: name in find_rule(rule).settings for name in SLIDERS}


def _show_used(rule: str) -> list[Any]:
    return [gr.update(visible=visible) for visible in _used(rule).values()]


def patcher_of(values: Mapping[str, Any], prefix: str) -> Patcher:
    """The rule that the settings of :func:`add_rule` stand for."""
    rule = values[f"{prefix}rule"]
    settings = {
        setting: values[f"{prefix}{SLIDERS[setting][0]}"] for setting in find_rule(rule).settings
    }
    longest = int(values[f"{prefix}{LONGEST}"]) or None
    return Patcher(rule=rule, max_patch_length=longest, **settings)


def names_of_rule(values: Mapping[str, Any], prefix: str) -> list[str]:
    """The names of the settings that decide the patches, for a link."""
    used = [SLIDERS[setting][0] for setting in find_rule(values[f"{prefix}rule"]).settings]
    return [f"{prefix}{name}" for name in ("rule", *used, LONGEST)]
