"""The origin of an export's data, fit for others to see."""

from pathlib import PurePosixPath
from typing import Any


def without_places(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance without directories and buckets of those who made the data.

    Args:
        provenance: ``sources`` and ``entropy_model`` as in a manifest, and whatever else.
    """
    sources = [
        {
            **source,
            "name": _public(source["name"]),
            "url": _public(source["url"]) if _is_public(source["url"]) else None,
        }
        for source in provenance["sources"]
    ]
    model = provenance["entropy_model"]
    # A hub id is two words; a directory may look like one.
    source = _public(str(model.get("source", "")), directories=1)
    return provenance | {"sources": sources, "entropy_model": model | {"source": source}}


def _is_public(url: str) -> bool:
    return url.startswith(("hf://", "http://", "https://"))


def _public(name: str, directories: int = 100) -> str:
    """A name without the place where the file lies, if it tells; paths below an input may stay."""
    if _is_public(name):
        return name.partition("?")[0].partition("#")[0]
    private = name.startswith(("/", ".", "~")) or "://" in name or name.count("/") > directories
    return PurePosixPath(name).name if private else name
