"""The shape of the model on the command line: ``--shape.dim-global 1024``, ``--shape.file FILE``.

The flags are the fields of the shape of the kind of models that the configuration trains (see
:mod:`train.checkpoints.kinds`). The shape that is trained is the configuration's, or that of the
file, with the flags' values in place of its own; widths that are derived from a value that changes
follow it (:func:`model.widths.resized`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torchtitan.config.manager import custom_registry
from tyro.constructors import (
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from model.checkpoints.files import CheckpointError
from model.token_transformer import TokenTransformerConfig, padded_vocab_size
from model.tokenizer import BYTE_OFFSET
from model.widths import resized
from pipeline.bpe.byte_level import load_bpe
from pipeline.errors import ConfigError
from train.checkpoints.kinds import Shape
from train.checkpoints.model_json import has_type
from train.checkpoints.shape_file import read_shape_file
from train.data.tokenizer import FLAG as TOKENIZER_FLAG
from train.flags.field_docstrings import field_docstrings

NOT_FLAGS = ("patcher", "patch_provenance", "latent_origin", "tokenizer")
"""Fields that the data or the initial weights decide, and not the command line."""


@dataclass(frozen=True)
class ShapeFlags:
    """A configuration's shape, and what the command line changes in it."""

    base: Shape
    """The shape of the configuration."""
    given: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The values that flags gave, by name."""
    file: str | None = None
    """Path or URL of what describes a shape, to begin with instead of ``base``."""

    def resolve(self) -> Shape:
        """The shape that is trained.

        Raises:
            ConfigError: the file cannot be used, or values do not fit together; names the flag.
        """
        base = self.base
        if self.file:
            try:
                base = read_shape_file(self.file, base)
            except CheckpointError as error:
                raise ConfigError(f"--shape.file: {error}") from error
        try:
            return resized(base, self.given)
        except ValueError as error:
            name, _, problem = str(error).partition(":")
            source = f" (with the other values of {self.file})" if self.file else ""
            raise ConfigError(f"{flag(name)}:{_with_flags(problem, base)}{source}") from error

    def to_dict(self) -> dict[str, Any]:
        """The values of the shape that is trained, which torchtitan records."""
        return asdict(self.resolve())


def flag(name: str) -> str:
    """The flag of a shape's field."""
    return f"--shape.{name.replace('_', '-')}"


def _with_flags(problem: str, shape: Shape) -> str:
    """A message in which flags stand for the names of fields."""
    names = "|".join(f.name for f in fields(shape) if "_" in f.name)
    return re.sub(rf"\b({names})\b", lambda match: flag(match[0]), problem)


@dataclass(frozen=True)
class _Unchanged:
    """The value of a flag that was not given."""

    value: Any


@custom_registry.struct_rule
def _shape_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """torchtitan's parser (tyro) takes :class:`ShapeFlags` apart into one flag for each field of
    the shape."""
    if info.type is not ShapeFlags:
        return None
    default: ShapeFlags = info.default
    shape = default.resolve()
    hints, texts = get_type_hints(type(shape)), field_docstrings(type(shape))
    flags = [
        StructFieldSpec(
            name=f.name,
            type=Annotated[Any, _value_of(hints[f.name])],  # type: ignore[arg-type]
            default=_Unchanged(getattr(shape, f.name)),
            helptext=texts[f.name],
        )
        for f in fields(shape)
        if f.name not in NOT_FLAGS
    ]
    file = StructFieldSpec(
        name="file",
        type=str | None,  # type: ignore[arg-type]
        default=default.file,
        helptext="Path or URL of what has the shape to begin with: a checkpoint's directory, its "
        "model.json, config.json or params.json, or a JSON file with some of the values below, by "
        "the names of the flags with _ for -. A Llama's directory gives the latent transformer its "
        "shape. Flags count more than the file.",
    )

    def instantiate(*, file: str | None, **values: Any) -> ShapeFlags:
        given = {n: v for n, v in values.items() if not isinstance(v, _Unchanged)}
        return ShapeFlags(default.base, MappingProxyType({**default.given, **given}), file)

    return StructConstructorSpec(instantiate=instantiate, fields=(file, *flags))


def _value_of(hint: Any) -> PrimitiveConstructorSpec[Any]:
    """The values that a flag of this type takes. tyro's own rules have no place for a value that
    was not given, which has to be told from one that equals the configuration's."""
    is_tuple = get_origin(hint) is tuple
    metavar = _metavar(hint)

    def parse(words: list[str]) -> Any:
        values = [_literal(word) for word in words]
        value = [v for v in values if v is not None] if is_tuple else values[0]
        if not has_type(value, hint):
            raise ValueError(f"{' '.join(words)} is not {metavar}")
        return tuple(value) if is_tuple else value

    def words(default: _Unchanged) -> list[str]:
        values = default.value if is_tuple else [default.value]
        return [str(value) for value in values] or ["none"]

    return PrimitiveConstructorSpec(
        nargs="*" if is_tuple else 1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda _: True,
        str_from_instance=words,
    )


def _metavar(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"[{_metavar(get_args(hint)[0])} ...]|none"
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if options := get_args(hint):
        return "|".join("none" if o is type(None) else _metavar(o) for o in options)
    return "True|False" if hint is bool else hint.__name__.upper()


def _literal(word: str) -> Any:
    """The value that a word stands for, as in JSON, but in any case: none, true, 12, 1e-5."""
    named = {"none": None, "true": True, "false": False}
    if word.lower() in named:
        return named[word.lower()]
    try:
        return json.loads(word)
    except ValueError:
        return word


def set_shape(config: Any) -> None:
    """Give the shape of a training's flags to its model: ``config.shape`` to ``config.model_spec``.

    Args:
        config: a ``ByteTrainer.Config``.

    Raises:
        ConfigError: a flag of the shape is wrong; names it.
    """
    spec, shape = config.model_spec, config.shape.resolve()
    size = spec.flavor.removesuffix(CHANGED)
    changed = size if shape == config.shape.base else size + CHANGED
    if isinstance(shape, TokenTransformerConfig) and config.tokenizer.source:
        shape = for_tokenizer(shape, config.shape, config.tokenizer.source)
    if shape != spec.model.shape:
        model = replace(spec.model, shape=shape)
        config.model_spec = replace(spec, model=model, flavor=changed)
    config.loss.global_vocab_size = shape.vocab_size


def for_tokenizer(
    shape: TokenTransformerConfig, flags: ShapeFlags, source: str
) -> TokenTransformerConfig:
    """The shape for a tokenizer: with its hash, and, unless a flag or file says it, its vocabulary.

    Raises:
        ConfigError: the tokenizer cannot be used, or not with this shape; names the flag.
    """
    bpe = load_bpe(source, TOKENIZER_FLAG)
    if shape.tokenizer not in (None, bpe.sha256):
        raise ConfigError(
            f"{TOKENIZER_FLAG} {source}: is another tokenizer than that of the weights in "
            f"{flags.file}; give theirs"
        )
    size, needed = shape.vocab_size, bpe.tokens + BYTE_OFFSET
    if flags.file is None and "vocab_size" not in flags.given:
        size = padded_vocab_size(bpe.tokens)
    if size < needed:
        raise ConfigError(f"{flag('vocab_size')}: {source} needs at least {needed}, got {size}")
    return replace(shape, vocab_size=size, tokenizer=bpe.sha256)


CHANGED = ", changed by --shape"
"""Follows the size's name in the log where the shape is another one."""
