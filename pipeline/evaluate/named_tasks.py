"""The names of tasks of lm-evaluation-harness → the tasks, with their data."""

from collections.abc import Sequence
from pathlib import Path

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from pipeline.errors import ConfigError, translated


def load_tasks(names: Sequence[str], manager: TaskManager) -> list[Task | Group]:
    """Tasks, and groups of tasks, with their data.

    Args:
        names: of tasks, groups and tags; patterns of names, such as ``mmlu_*``; paths of YAML
            files. A task that is named twice runs once.

    Raises:
        ConfigError: one is not known, its data cannot be loaded, or a task is named by itself and
            belongs to a group that is named, too.
    """
    wanted: dict[str, None] = {}
    for name in names:
        known = [name] if Path(name).is_file() else manager.match_tasks([name])
        if not known:
            raise ConfigError(
                f"--harness-tasks: {name!r} is neither a task that lm-eval knows (lm_eval ls tasks "
                "lists them) nor a YAML file"
            )
        wanted |= dict.fromkeys(known)
    if not wanted:
        raise ConfigError("--harness-tasks: names no task")
    tasks: list[Task | Group] = []
    for name in wanted:
        with translated(f"--harness-tasks: {name}", ConfigError, "cannot be loaded"):
            found = manager.load([name])
        # A group comes before the groups that it holds, which run with it.
        outer = next(iter(found["groups"].values()), None)
        tasks += [outer] if outer else found["tasks"].values()
    with translated("--harness-tasks", ConfigError, "cannot run together"):
        manager.load(tasks)
    return tasks
