"""The origin of an export's data, fit for others to see."""

from typing import Any

from pipeline.shards.provenance import is_public, public_model, public_name


def without_places(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance without directories and buckets of those who made the data.

    Args:
        provenance: ``sources`` and ``entropy_model`` as in a manifest, and whatever else.
    """
    sources = [
        {
            **source,
            "name": public_name(source["name"]),
            "url": public_name(source["url"]) if is_public(source["url"]) else None,
        }
        for source in provenance.get("sources", [])
    ]
    model = provenance.get("entropy_model", {})
    if "source" in model:  # nobody need know whose entropies were adopted
        model = model | {"source": public_model(str(model["source"]))}
    return provenance | {"sources": sources, "entropy_model": model}
