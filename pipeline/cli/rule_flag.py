"""The flag that names a boundary rule."""

from typing import Any, Literal, cast

import tyro

from model.rules import DEFAULT_RULE, RULES, plain_text_rules


def rule_flag(purpose: str, more: tuple[str, ...] = ()) -> Any:
    """The annotation of a ``str`` field that makes it the flag ``--rule``: the name of a boundary
    rule in :data:`model.rules.RULES`.

    The choices are looked up whenever a command line is read, so that rules that were added to the
    table meanwhile are among them.

    Args:
        purpose: the first sentence of the help text; a description of each rule follows.
        more: rules that are offered, too, though text alone cannot be patched by them.
    """
    names = (*plain_text_rules(), *more)
    rules = "; ".join(f"{name}: {RULES[name].description}" for name in names)
    return tyro.conf.arg(
        constructor_factory=lambda: cast(type, Literal[(*plain_text_rules(), *more)]),
        help=f"{purpose} {rules}.",
        help_behavior_hint=f"(default: {DEFAULT_RULE})",
    )
