"""A shard set that a page browses for days, and that may be written anew meanwhile."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError
from pipeline.shards.named import named_set
from pipeline.shards.random_access import DocumentIndex

Answer = TypeVar("Answer")


class OpenSet:
    """The documents of a shard set. Shards are read by what the manifest said when the set was
    opened; once another set lies in its place, they are not those, and look damaged."""

    def __init__(self, url: str):
        """
        Raises:
            ConfigError: there is no such set.
            PipelineError: the set's entries are damaged; names the file.
        """
        self.url = url
        self._documents = DocumentIndex(named_set(url))

    def __len__(self) -> int:
        return len(self._documents)

    def ask(self, question: Callable[[DocumentIndex], Answer]) -> Answer:
        """Ask a question about the documents, and return the answer. If it fails, and another set
        lies there by now, that one is opened and asked.

        Raises:
            ConfigError: there is no finished set any more.
            PipelineError, IndexError: those of the question.
        """
        documents = self._documents
        try:
            return question(documents)
        except (PipelineError, IndexError):
            found = named_set(self.url)
            if found.manifest == documents.shards.manifest:
                raise
        self._documents = DocumentIndex(found)
        return question(self._documents)
