"""The provenance of a shard set's patches, and names of sets and files that others may see."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from model.patcher import Patcher
from model.provenance import EntropyModelIdentity, PatchProvenance, grouped
from pipeline.shards.shard_set import ShardSet

FITTED_MODEL = "entropy-model"
"""Directory of a set that holds the n-gram model which was fitted for it."""


def provenance_of(shards: ShardSet, patcher: Patcher | None = None) -> PatchProvenance:
    """How the patches of a set were made, as its manifest says; the set is called by its URL.

    Args:
        patcher: the rule by which the set is re-patched; its own by default.
    """
    patcher = patcher or shards.patcher
    model = shards.entropy_model if patcher.reads_entropies else None
    return PatchProvenance(patcher, model, (shards.output.url,))


def entropy_model_place(shards: ShardSet) -> str | None:
    """Where the entropy model of a set can be read: in the set if it was fitted for it, or else
    where it lay when the set was patched; None if that is not recorded."""
    if shards.output.exists(f"{FITTED_MODEL}/config.json"):
        return shards.output.locate(FITTED_MODEL)
    return shards.entropy_model.source if shards.entropy_model else None


def recorded(provenances: Sequence[PatchProvenance]) -> tuple[PatchProvenance, ...]:
    """The provenances of sets as a checkpoint holds them: equal ones as one, and without the
    directories and buckets of those who made the data."""
    urls = dict.fromkeys(url for each in provenances for url in each.sets)
    names = dict(zip(urls, short_names(urls), strict=True))
    return grouped(
        replace(
            each, entropy_model=_public_model(each), sets=tuple(names[url] for url in each.sets)
        )
        for each in provenances
    )


def _public_model(provenance: PatchProvenance) -> EntropyModelIdentity | None:
    model = provenance.entropy_model
    if model is None or model.source is None:
        return model
    return replace(model, source=public_model(model.source))


def public_model(source: str) -> str:
    """The name of an entropy model, fit for others to see: a hub id is two words, and a directory
    may look like one."""
    return public_name(source, directories=1)


def short_names(urls: Iterable[str]) -> list[str]:
    """Names for sets: the last parts of their URLs, as few parts as make the names differ."""
    urls = list(urls)
    parts = [[part for part in url.split("/") if part] for url in urls]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-count:]) for some in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return urls


def public_name(name: str, directories: int = 100) -> str:
    """A name fit for others to see: without the directory or bucket where a private file lies.

    >>> public_name("/home/me/corpus/en.txt"), public_name("hf://owner/name?token=1")
    ('en.txt', 'hf://owner/name')

    Args:
        directories: how many directories a relative path may name and still be public.
    """
    if is_public(name):
        return name.partition("?")[0].partition("#")[0]
    private = name.startswith(("/", ".", "~")) or "://" in name or name.count("/") > directories
    return PurePosixPath(name).name if private else name


def is_public(url: str) -> bool:
    """True for a URL that others may be able to reach."""
    return url.startswith(("hf://", "http://", "https://"))
