"""Errors that a user can act on: jobs print their text and nothing else."""


class PipelineError(Exception):
    """The job cannot go on; the message says what is wrong, where, and what to do."""


class ConfigError(PipelineError):
    """A setting is wrong; the message begins with the flag. Raised before any work."""


class BadFileError(PipelineError):
    """A file's content cannot be decoded (further): the file fails, the job goes on."""


class UnreachableFileError(PipelineError):
    """A file cannot be read now: the rest of it is left for a rerun, the job goes on."""


class BadDocumentError(PipelineError):
    """A document cannot be used, and the job was asked to stop at such."""


class DamagedShardError(PipelineError):
    """A shard is not what its manifest says; tells where and how."""
