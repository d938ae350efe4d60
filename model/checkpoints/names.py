"""Names that flags of checkpoints take: layouts, the model that comes along, those of the hub.

Commands read them to parse their flags, so this module imports nothing that takes time.
"""

from typing import Literal

BUILT_IN = "entropy-1m"
"""The default among the entropy models that come with this package."""
PUBLISHED = ("facebook/blt-1b", "facebook/blt-7b")
PUBLISHED_ENTROPY_MODEL = "facebook/blt-entropy"
Layout = Literal["own", "transformers", "published"]
"""The layouts that weights are written in."""
