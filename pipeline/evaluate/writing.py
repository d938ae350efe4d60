"""Settings with which tasks of lm-evaluation-harness ask for text, as arguments of ``generate``."""

from collections.abc import Iterator, Mapping
from typing import Any

BYTES_PER_TOKEN = 4
"""About so many bytes are in one token of the models that tasks are written for: tasks limit the
length of what is generated in such tokens."""
USED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
"""Settings that :func:`arguments` reads."""
NOTHING = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "n"), 1),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_p", "min_length", "min_new_tokens", "min_tokens"), 0),
    **dict.fromkeys(("use_cache", "skip_special_tokens"), True),
}
"""Values of further settings that change nothing of a text."""


def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`model.generation.generate.generate` that a task's settings say; a
    setting that many tasks leave out, or say with 0 or -1, is that of greedy text without limits.

    Raises:
        ValueError: a setting is of another kind than it has to be, such as a stop string that YAML
            reads as a number; names it.
    """
    stops = [stop for stop in settings["until"] if stop not in (None, "") and stop is not False]
    for stop in stops:
        if not isinstance(stop, str):
            raise ValueError(f"until: must be texts (in YAML in quotes), got {stop!r}")
    for name in ("temperature", "top_k", "top_p"):
        kinds = int | None if name == "top_k" else int | float | None
        if not isinstance(settings.get(name), kinds):
            what = "whole number" if name == "top_k" else "number"
            raise ValueError(f"{name}: must be a {what}, got {settings[name]!r}")
    top_k = settings.get("top_k")
    return {
        "max_new_bytes": settings["max_gen_toks"] * BYTES_PER_TOKEN,
        "temperature": settings.get("temperature") or 0.0,
        "top_k": top_k if top_k and top_k > 0 else None,
        "top_p": settings.get("top_p"),
        "stop": stops,
    }


def passed_over(settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings that would change the text and are not followed, with what is done instead."""
    for name, value in settings.items():
        # What is off, or has no value, is none either.
        if name not in USED and value not in (None, False, NOTHING.get(name)):
            yield f"{name}={value!r} is not known to this model and passed over"
    if settings.get("do_sample") and not settings.get("temperature"):
        yield "do_sample=True comes without a temperature: text is greedy"
