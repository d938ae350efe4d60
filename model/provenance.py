"""The provenance of patches: which rule placed the boundaries, on the entropies of which model.

A BLT knows the patches that it was trained on. One threshold on the entropies of two models gives
two kinds of patches, and bits per byte that cannot be compared. So manifests of shards and
checkpoints hold a :class:`PatchProvenance`, and whatever brings two of them together (training,
validation, evaluation, generation, reports) asks :func:`patch_differences`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from model.device import same_rounding
from model.patcher import SHOWN_DIGITS, Patcher

SHOWN_SETS = 3
"""Sets that messages name."""


@dataclass(frozen=True)
class EntropyModelIdentity:
    """The model that gave the entropies; what is not known is None."""

    source: str | None = None
    """The directory, URL or hub id that the user gave, or ``ngram``."""
    fingerprint: str | None = None
    """See :func:`model.checkpoints.entropy_model.fingerprint`: it decides, the source does not."""
    computed_in: str | None = None
    """Device, dtype and kind of GPU: see :func:`model.device.computing_in`."""
    reset_at_newline: bool | None = None
    """True if the context started again after each newline."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The identity in a manifest or a checkpoint, which may hold further keys.

        Raises:
            ValueError: a value is of another type; names it.
        """
        kinds = {"source": str, "fingerprint": str, "computed_in": str, "reset_at_newline": bool}
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind | None):
                raise ValueError(f"entropy_model.{name}: {values[name]!r} is no {kind.__name__}")
        return cls(**{name: values.get(name) for name in kinds})

    def __str__(self) -> str:
        known = f"fingerprint {self.fingerprint[:SHOWN_DIGITS]}" if self.fingerprint else "unknown"
        return f"{self.source} ({known})" if self.source else known


@dataclass(frozen=True)
class PatchProvenance:
    """How the patches of some shard sets were made."""

    patcher: Patcher
    """The rule that placed the boundaries, with the threshold that was used."""
    entropy_model: EntropyModelIdentity | None = None
    """None if it is not known, or the rule reads no entropies."""
    sets: tuple[str, ...] = ()
    """Names of the shard sets, without the places where they lie."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The provenance that ``dataclasses.asdict`` made, from JSON.

        Raises:
            ValueError: a value is missing or damaged; names it.
        """
        if not isinstance(values, dict) or not isinstance(values.get("patcher"), dict):
            raise ValueError(f"patch_provenance: {values!r:.80} has no boundary rule (patcher)")
        try:
            patcher = Patcher.from_json(values["patcher"])
        except TypeError as error:
            raise ValueError(f"patch_provenance: patcher: {error}") from error
        sets, model = values.get("sets", []), values.get("entropy_model")
        if not isinstance(sets, list) or not all(isinstance(name, str) for name in sets):
            raise ValueError(f"patch_provenance: sets: {sets!r:.80} is no list of names")
        if not isinstance(model, dict | None):
            raise ValueError(f"patch_provenance: entropy_model: {model!r:.80} is no object")
        identity = None if model is None else EntropyModelIdentity.from_json(model)
        return cls(patcher, identity, tuple(sets))

    @property
    def identified(self) -> bool:
        """True if all is known that decides the boundaries: a rule that reads entropies also needs
        the fingerprint of their model."""
        model = self.entropy_model
        return not self.patcher.reads_entropies or bool(model and model.fingerprint)

    def __str__(self) -> str:
        by = f" on entropies of {self.entropy_model}" if self.patcher.reads_entropies else ""
        return f"{self.patcher}{by if self.entropy_model else ''}"


@dataclass(frozen=True)
class LatentOrigin:
    """The model of tokens whose blocks a BLT's latent transformer began with."""

    source: str
    """Its hub id, or the name of the directory that it was read from."""
    revision: str | None
    """The commit on the hub, if it is known."""
    fingerprint: str
    """See :func:`model.checkpoints.llama.latent_origin`."""

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The origin in a checkpoint.

        Raises:
            ValueError: it is damaged; says where.
        """
        kinds = {"source": str, "revision": str | None, "fingerprint": str}
        if not isinstance(values, dict) or values.keys() != kinds.keys():
            raise ValueError(f"latent_origin: {values!r:.80} has not just {', '.join(kinds)}")
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise ValueError(f"latent_origin: {name}: {values[name]!r:.80} is no text")
        return cls(**values)


class PatchDifferences(NamedTuple):
    """The differences between two provenances, in words; empty where there are none."""

    rule: str = ""
    """The boundary rules, or their settings, differ."""
    entropies: str = ""
    """The entropies come from different models, or from one that read other contexts."""
    note: str = ""
    """The boundaries are the same up to rounding, or as far as is known."""

    @property
    def boundaries(self) -> str:
        """All that makes the boundaries differ."""
        return "; ".join(filter(None, [self.rule, self.entropies]))

    def weight(self) -> tuple[bool, ...]:
        """A key that sorts by how much differs."""
        return bool(self.entropies), bool(self.rule), bool(self.note)


def patch_differences(
    one: PatchProvenance,
    other: PatchProvenance,
    names: tuple[str, str],
    *,
    any_threshold: bool = False,
) -> PatchDifferences:
    """Compare two provenances: every part of the project asks this function.

    Models are the same where their fingerprints are. Rules that read no entropies have no model to
    compare.

    Args:
        names: the owners of the two provenances, to complete "the rule of".
        any_threshold: rules that differ in the threshold alone count as the same.
    """
    a, b = names
    rule, rules = "", [one.patcher, other.patcher]
    if any_threshold:
        rules = [replace(each, threshold=0.0) if each.has_threshold else each for each in rules]
    if rules[0] != rules[1]:
        rule = f"the rule of {a} is {one.patcher}, that of {b} is {other.patcher}"
    if not (one.patcher.reads_entropies and other.patcher.reads_entropies):
        return PatchDifferences(rule)
    if not one.identified and not other.identified:
        return PatchDifferences(rule, note=f"neither {a} nor {b} records its entropy model")
    models = [each.entropy_model or EntropyModelIdentity() for each in (one, other)]
    x, y = models
    if x.fingerprint != y.fingerprint:
        return PatchDifferences(rule, f"the entropy model of {a} is {x}, that of {b} is {y}")
    resets = [model.reset_at_newline for model in models]
    if None not in resets and resets[0] != resets[1]:
        c, d = (a, b) if resets[0] else (b, a)
        said = f"the entropies of {c} start again after each newline, those of {d} do not"
        return PatchDifferences(rule, said)
    if not same_rounding(x.computed_in, y.computed_in):
        said = f"the entropies of {a} were computed in {x.computed_in}, those of {b} in "
        return PatchDifferences(rule, note=f"{said}{y.computed_in}: they differ by rounding")
    return PatchDifferences(rule)


def closest(
    record: Iterable[PatchProvenance], given: PatchProvenance, names: tuple[str, str]
) -> PatchDifferences:
    """The differences between ``given`` and the provenance in a record that it differs least from.

    A provenance of the record that does not identify its entropy model is compared by rule alone,
    and the note says so.

    Args:
        names: the owner of the record, and that of ``given``.
    """
    return min(
        (_recorded_differences(each, given, names) for each in record), key=PatchDifferences.weight
    )


def _recorded_differences(
    recorded: PatchProvenance, given: PatchProvenance, names: tuple[str, str]
) -> PatchDifferences:
    if recorded.identified or not given.patcher.reads_entropies:
        return patch_differences(recorded, given, names)
    unknown = f"{names[0]} does not record its entropy model: that of {names[1]} is not compared"
    alone = replace(given, entropy_model=None)
    return patch_differences(recorded, alone, names)._replace(note=unknown)


def grouped(provenances: Iterable[PatchProvenance]) -> tuple[PatchProvenance, ...]:
    """Each provenance once, with the names of all its sets."""
    sets: dict[PatchProvenance, dict[str, None]] = {}
    for each in provenances:
        sets.setdefault(replace(each, sets=()), {}).update(dict.fromkeys(each.sets))
    return tuple(replace(each, sets=tuple(names)) for each, names in sets.items())


def kinds_of(provenances: Iterable[PatchProvenance]) -> tuple[PatchProvenance, ...]:
    """Provenances without what makes no other boundaries, each once with all its sets: rounding,
    the names of models, and the models of rules that read no entropies."""
    kinds: dict[tuple[object, ...], PatchProvenance] = {}
    for each in provenances:
        model = each.entropy_model if each.patcher.reads_entropies else None
        key = (each.patcher, model and model.fingerprint, model and model.reset_at_newline)
        kind = kinds.setdefault(key, replace(each, sets=()))
        kinds[key] = replace(kind, sets=tuple(dict.fromkeys(kind.sets + each.sets)))
    return tuple(kinds.values())


def listed(provenances: Iterable[PatchProvenance]) -> str:
    """Provenances in words, with the names of their first sets."""

    def sets(names: tuple[str, ...]) -> str:
        more = f" and {len(names) - SHOWN_SETS} more" if len(names) > SHOWN_SETS else ""
        return f" in {', '.join(names[:SHOWN_SETS])}{more}" if names else ""

    return "; ".join(f"{each}{sets(each.sets)}" for each in provenances)
