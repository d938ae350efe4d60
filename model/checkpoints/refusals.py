"""Directories that are no model that can be loaded here, and look like one."""

from pathlib import Path

from model.checkpoints.files import TOKEN_TRANSFORMER, JsonObject


def refuse_token_transformer(config: JsonObject) -> None:
    """
    Raises:
        ValueError: a ``config.json`` is that of a token transformer, where bytes are read.
    """
    if config.get("format") == TOKEN_TRANSFORMER:
        raise ValueError(
            "is a token transformer, which reads the tokens of a tokenizer and no bytes; programs "
            "that use transformers read what jobs/convert_checkpoint.py --layout transformers "
            "makes of it"
        )


def refuse_other_format(config: JsonObject, what: str, known: str) -> None:
    """
    Raises:
        ValueError: a ``config.json`` says that its format is another than the one ``known`` to us,
            which neither of the other layouts says.
    """
    if "format" in config and config["format"] != known:
        raise ValueError(
            f"config.json: format {config['format']!r:.80} is not that of {what} ({known}): it is "
            "another kind of model, or of a later release"
        )


def refuse_steps(directory: Path) -> None:
    """To be asked once a directory is in no layout that holds weights: one may hold both.

    Raises:
        ValueError: it is a step of a training, which holds weights in the trainer's form, or holds
            such steps.
    """
    if (directory / ".metadata").is_file():
        raise ValueError(
            "is a step of a training; python jobs/convert_checkpoint.py --checkpoint makes weights "
            "of it"
        )
    if any(directory.glob("step-*/.metadata")):
        raise ValueError(
            "holds steps of a training; python jobs/convert_checkpoint.py --checkpoint makes "
            "weights of one of them"
        )
