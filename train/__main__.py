"""``python -m train --config blt_debug --dataloader.shards DIR``: torchtitan's command with our
configurations, on one process without a launcher, or on each of ``torchrun -m train``.
"""

import logging
import os
import socket
import sys

from train.shim import prepare


def main() -> None:
    """Run torchtitan with the command line's arguments."""
    prepare()
    from torchtitan.train import main as train

    _be_brief()
    if "RANK" not in os.environ:
        _be_alone()
    sys.argv[1:1] = ["--module", "train"]
    train()


def _be_brief() -> None:
    """Leave out what is said of every run and tells nothing."""
    # torchtitan warns four times of one of its own defaults.
    no_news = "initial_load_model_only=True has no effect"
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith(no_news))
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _be_alone() -> None:
    """What a launcher would say to the only process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


if __name__ == "__main__":
    main()
