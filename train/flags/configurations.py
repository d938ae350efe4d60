"""The names of the trainer's configurations, without importing them.

The functions of :mod:`train.config_registry` need torchtitan, which takes seconds to import; their
names and docstrings are read from the file, so that a mistyped name is refused at once.
"""

import ast
from pathlib import Path

from pipeline.errors import ConfigError

REGISTRY = Path(__file__).parents[1] / "config_registry.py"


def configurations() -> dict[str, str]:
    """The first line of each configuration's docstring, by the configuration's name."""
    return {
        node.name: (ast.get_docstring(node) or "").split("\n")[0]
        for node in ast.parse(REGISTRY.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def check_configuration(name: str | None) -> None:
    """
    Raises:
        ConfigError: there is no such configuration; lists all.
    """
    known = configurations()
    if name not in known:
        problem = (
            "is not given; choose one of" if name is None else f"there is no {name}; there are"
        )
        raise ConfigError(f"--config: {problem} {', '.join(known)}")
