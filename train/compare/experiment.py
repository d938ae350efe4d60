"""The file of an experiment: arms that are compared, seeds, and what a run may cost.

A file is TOML. ``forms`` are the sizes in which the experiment exists, such as ``cpu`` and ``gpu``;
everything else is the same in all forms::

    title = "Static patches against entropy patches"
    question = "Do boundaries that an entropy model chose beat boundaries wherever they fall?"
    seeds = [0, 1, 2]

    [forms.cpu]
    size = "debug"              # of the configurations: blt_debug, bpe_debug, bytes_debug
    budget_flops = 1e13         # training FLOPs per run
    row_bytes = 1024            # text per row, and rows per step
    rows = 8
    [forms.cpu.shapes.blt]      # values of the shape of every BLT
    dim_global = 160

    [arms.entropy]              # the first arm is what the others are compared with
    label = "entropy patches"
    model = "blt"
    patch_size = 4.5

    [arms.static]
    label = "patches of one size"
    model = "blt"
    rule = "static"
    patch_size = 4.5

Arms after the first get the width at which they cost what the first one costs
(:mod:`train.compare.fitting`).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from model.rules import find_rule, plain_text_rules
from pipeline.errors import ConfigError

SHIPPED = Path(__file__).parent / "experiments"
MODELS = ("blt", "bpe", "bytes")
CLEAN = "held out"
"""The name of the held-out text as it is."""


@dataclass(frozen=True)
class Form:
    """One size of an experiment."""

    size: str
    """The size of the configurations: ``debug`` for ``blt_debug``, ``bpe_debug``, …"""
    budget_flops: float
    """Training FLOPs of a run."""
    row_bytes: int
    """Bytes of text per row; a token transformer has as many tokens as these are."""
    rows: int
    """Rows per step."""
    vocab_size: int = 4096
    """Tokens of the tokenizer of ``bpe`` models, which is trained on the text."""
    points: int = 8
    """Measurements of the held-out text per run."""
    corpus_bytes: int = 8_000_000
    """Text to take where the experiment brings its own."""
    held_out_bytes: int = 200_000
    """Text of it that is held out."""
    shapes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of the shape by the kind of model, instead of the configuration's."""
    flags: tuple[str, ...] = ()
    """Flags of the trainer for all arms."""


@dataclass(frozen=True)
class Arm:
    """A model of an experiment, and what it reads."""

    name: str
    label: str
    """The name for people."""
    model: str
    """One of MODELS."""
    entropy_model: str = "entropy-1m"
    """Entropy model of the patches: a name, or a directory."""
    rule: str = "global"
    """Boundary rule of the patches."""
    patch_size: float | None = None
    """Mean bytes per patch, for rules that can be asked for a size."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Values of the shape, instead of the form's."""
    flags: tuple[str, ...] = ()
    """Flags of the trainer."""

    def check(self) -> None:
        """
        Raises:
            ValueError: values do not fit together.
        """
        if self.model not in MODELS:
            raise ValueError(f"model: {self.model!r} is none of {', '.join(MODELS)}")
        if self.model != "blt":
            if self.patch_size is not None:
                raise ValueError(f"patch_size: a {self.model} model has no patches")
            return
        if self.rule not in plain_text_rules():
            raise ValueError(f"rule: {self.rule!r} is none of {', '.join(plain_text_rules())}")
        rule = find_rule(self.rule)
        sized = rule.compares is not None or "patch_size" in rule.settings
        if sized != (self.patch_size is not None):
            needs = "needs" if sized else "has no"
            raise ValueError(f"patch_size: the {self.rule} rule {needs} mean bytes per patch")


@dataclass(frozen=True)
class Experiment:
    """The content of a file."""

    name: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    forms: Mapping[str, Form]
    seeds: tuple[int, ...] = (0, 1, 2)
    notes: tuple[str, ...] = ()
    """Sentences for the page."""
    noise: tuple[str, ...] = ()
    """Kinds of noise with which the held-out text is measured once more at the end of each run."""

    def form(self, name: str) -> Form:
        """
        Raises:
            ConfigError: there is no such form.
        """
        if name not in self.forms:
            raise ConfigError(f"--form: {self.name} has no {name}; it has {', '.join(self.forms)}")
        return self.forms[name]


def shipped() -> list[str]:
    """The names of the experiments that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read_experiment(name_or_file: str) -> Experiment:
    """Read an experiment that comes along, by its name, or a file.

    Raises:
        ConfigError: there is none, or it is wrong; names the file and the value.
    """
    path = SHIPPED / f"{name_or_file}.toml"
    if not path.is_file():
        path = Path(name_or_file)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--experiment: {name_or_file} is neither a file nor one of {', '.join(shipped())}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from error
    try:
        return _experiment(path.stem, values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _experiment(name: str, values: dict[str, Any]) -> Experiment:
    """
    Raises:
        ValueError: a value is missing, unknown or wrong; the message begins with its place.
    """
    arms = _tables(values, "arms")
    forms = _tables(values, "forms")
    made = _made(
        Experiment,
        values,
        "",
        name=name,
        arms=tuple(_made(Arm, arm, f"arms.{key}.", name=key) for key, arm in arms.items()),
        forms={key: _made(Form, form, f"forms.{key}.") for key, form in forms.items()},
    )
    for arm in made.arms:
        try:
            arm.check()
        except ValueError as error:
            raise ValueError(f"arms.{arm.name}.{error}") from error
    from train.compare.noise import KINDS

    if wrong := [kind for kind in made.noise if kind not in KINDS]:
        raise ValueError(f"noise: {wrong[0]!r} is none of {', '.join(KINDS)}")
    if not made.seeds or len(set(made.seeds)) < len(made.seeds):
        raise ValueError("seeds: name each seed once")
    for key, form in made.forms.items():
        for f in fields(Form):
            number = getattr(form, f.name)
            if isinstance(number, int | float) and number <= 0:
                raise ValueError(f"forms.{key}.{f.name}: has to be positive")
        if unknown := [kind for kind in form.shapes if kind not in MODELS]:
            raise ValueError(f"forms.{key}.shapes.{unknown[0]}: is none of {', '.join(MODELS)}")
    return made


def _tables(values: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = values.get(key)
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"{key}: there are no [{key}.NAME]")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{key}.{name}: is no table")
    return tables


def _made(kind: type, values: dict[str, Any], place: str, **known: Any) -> Any:
    """A dataclass from a table; ``known`` are the values that are made already."""
    hints = get_type_hints(kind)
    if unknown := [key for key in values if key not in hints or key == "name"]:
        raise ValueError(f"{place}{unknown[0]}: there is no such value")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in needed if key not in {**values, **known}]:
        raise ValueError(f"{place}{missing[0]}: is missing")
    given = {key: value for key, value in values.items() if key not in known}
    for key, value in given.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{place}{key}: {value!r} is of the wrong type")
        if isinstance(value, list):
            given[key] = tuple(value)
    return kind(**given, **known)


def _fits(value: Any, hint: Any) -> bool:
    """True if a value of TOML has the type of a field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if arguments:  # an optional value
        return any(_fits(value, each) for each in arguments if each is not type(None))
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
