"""The address that the viewer listens on: tried before Gradio is loaded, which takes seconds."""

import errno
import os
import socket

from pipeline.errors import ConfigError
from pipeline.viewer.config import PatchViewerConfig


def free_port(config: PatchViewerConfig) -> int:
    """A port that is free now: the one asked for, or any if that is 0.

    Raises:
        ConfigError: this machine does not have the address, or another program uses the port.
    """
    try:
        with socket.create_server((config.host, config.port)) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        number = error.errno or 0
        if number < 0 or number == errno.EADDRNOTAVAIL:  # below 0: a name that nobody knows
            raise ConfigError(
                f"--host {config.host}: is no address of this machine; 127.0.0.1 is reached from "
                "this machine alone, 0.0.0.0 from others, too"
            ) from error
        raise ConfigError(
            f"--port {config.port}: cannot listen on {config.host}: "
            f"{os.strerror(number)}; choose another, or 0 for any that is free"
        ) from error
