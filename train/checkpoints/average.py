"""The mean of the weights of several steps, which often does better than the last step alone.

The sum is made in float32, step by step: whatever the number of steps, memory holds the sum and one
step.
"""

from collections.abc import Sequence
from itertools import islice

import torch

from model.checkpoints.files import CheckpointError
from train.checkpoints.kinds import Model
from train.checkpoints.model_json import argument_differences, steps_in
from train.checkpoints.steps import is_complete, read_step


def steps_until(step: str, count: int) -> list[str]:
    """The ``count`` complete steps of a folder up to ``step``, which comes first.

    Args:
        step: directory or URL, such as ``outputs/checkpoint/step-1000``.

    Raises:
        CheckpointError: there are fewer.
    """
    step = step.rstrip("/")
    folder, _, name = step.rpartition("/")
    steps = steps_in(folder or ".")
    names = [each.rpartition("/")[2] for each in steps]
    before = steps[names.index(name) + 1 :] if name in names else []
    found = [step, *islice(filter(is_complete, before), count - 1)]
    if len(found) < count:
        raise CheckpointError(
            f"{step}: {count} steps are to be averaged, and {len(found)} complete ones are "
            "there, with those before it"
        )
    return found


@torch.no_grad()
def read_average(steps: Sequence[str]) -> Model:
    """A model whose weights are the means of the steps' weights, on the CPU.

    Args:
        steps: directories or URLs of one model; the result has the dtype of the first.

    Raises:
        CheckpointError: a step cannot be read, or is of another model; names it.
    """
    sums: dict[str, torch.Tensor] = {}
    model, shape = None, None
    for step in reversed(steps):
        model = None  # its memory is free before the next one is read
        model = read_step(step)
        if shape and (differing := argument_differences(shape, model.config)):
            raise CheckpointError(f"{step}: is of another model than the step before: {differing}")
        shape = model.config
        for name, weight in model.state_dict().items():
            sums[name] = sums[name] + weight.float() if name in sums else weight.float()
    assert model is not None
    for name, weight in model.state_dict().items():
        sums[name] = (sums[name] / len(steps)).to(weight.dtype)
    model.load_state_dict(sums, assign=True)
    return model
