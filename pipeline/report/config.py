"""The configuration of ``jobs/patch_report.py``: each field is a flag."""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.cli.flags import check_at_least
from pipeline.cli.optional import OrNone
from pipeline.cli.sizes import Size
from pipeline.errors import ConfigError

TARGETS = (4.5, 6.0, 8.0)
CONTEXT_BYTES = 8192


@dataclass(frozen=True)
class PatchReportConfig:
    """Look at patches: shard sets in, a page, plots and JSON out.

    The figures come from the manifests, which takes seconds for a corpus of any size. Exit status:
    0 if everything was done, 1 if a shard is damaged or the job stopped, 2 if a flag is wrong.
    """

    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Shard sets of patch_corpus.py, directories or URLs; several are compared side by side."""
    merge: bool = False
    """Report on all sets as one, such as the parts of a corpus that were patched by the same rule
    with the same entropy model. Without it, the sets are compared."""
    output: str = "patch-report"
    """Directory or URL for index.html, report.json and the plots as PNG files."""
    agreement: bool = False
    """Compare where patches start, document by document: each set with the first one, whose patches
    are the reference. Documents are matched by their text. One process reads the sets themselves:
    a gigabyte of text takes 5 seconds of a core, and each 100 MB that are compared 15 more."""
    documents: OrNone[int] = None
    """Documents that --agreement compares, about: a sample by hash, the same in all sets. By
    default 20,000, or fewer if these hold more than 256 MB. They take about eight times their text
    on the disk that TMPDIR names."""
    loss_bytes: Size = 0
    """Bytes of the text that --agreement compares to run the sets' entropy models on, for their
    bits per byte. None by default: it takes as long as patching so much text."""
    target_patch_size: tuple[float, ...] = TARGETS
    """Mean bytes per patch to suggest thresholds for."""
    tokenizer: OrNone[str] = None
    """A BPE tokenizer to compare FLOPs with: a tokenizer.json, a directory that holds one (such as
    prepare_corpus.py --tokenizer writes), or a hub id. It runs on a sample of each set's text."""
    context_bytes: int = CONTEXT_BYTES
    """Bytes of a training sequence, for the FLOPs of attention."""
    recompute: bool = False
    """Count all shards again, on Ray, instead of reading the manifests' statistics: for sets of
    earlier releases, for an exact curve where --max-patch-length split patches, or as a check."""
    num_workers: OrNone[int] = None
    """Workers of --recompute, one CPU each; by default as many as the cluster has room for."""
    json: bool = False
    """Print what report.json holds, and nothing else."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value makes no sense; names the flag.
        """
        from pipeline.storage.places import canonical_url

        if not self.shards:
            raise ConfigError("--shards: name at least one")
        if not self.target_patch_size or not all(0 < size < 1e6 for size in self.target_patch_size):
            sizes = " ".join(map(str, self.target_patch_size))
            raise ConfigError(f"--target-patch-size: bytes per patch, such as 4.5, got {sizes!r}")
        check_at_least(self, context_bytes=1, num_workers=1, documents=1, loss_bytes=0)
        if self.agreement and len(self.shards) < 2:
            raise ConfigError("--agreement: name two or more --shards, the reference first")
        if self.agreement and self.merge:
            raise ConfigError("--agreement: compares sets, which --merge makes one; leave one out")
        for flag, given in (("--documents", self.documents), ("--loss-bytes", self.loss_bytes)):
            if given and not self.agreement:
                raise ConfigError(f"{flag}: only --agreement compares documents")
        if self.num_workers is not None and not self.recompute:
            raise ConfigError("--num-workers: only --recompute has workers")
        places = (url.rstrip("/") if "://" in url else canonical_url(url) for url in self.shards)
        url, times = Counter(places).most_common(1)[0]
        if times > 1:
            raise ConfigError(f"--shards: {url} is named {times} times")
