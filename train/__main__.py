"""``python -m train --config blt_debug --dataloader.shards DIR``: torchtitan's command with our
configurations, on one process without a launcher, or on each of ``torchrun -m train``.
"""

import os
import socket
import sys

from train.shim import prepare


def main() -> None:
    """Run torchtitan with the command line's arguments."""
    prepare()
    from torchtitan.train import main as train

    if "RANK" not in os.environ:
        _be_alone()
    sys.argv[1:1] = ["--module", "train"]
    train()


def _be_alone() -> None:
    """What a launcher would say to the only process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


if __name__ == "__main__":
    main()
