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
    except socket.gaierror as error:
        raise _no_address(config.host, error.strerror) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(config.host, "no address of this machine") from error
        raise ConfigError(
            f"--port {config.port}: cannot listen on {config.host}: "
            f"{os.strerror(error.errno or 0)}; choose another, or 0 for any that is free"
        ) from error


def _no_address(host: str, why: str) -> ConfigError:
    return ConfigError(
        f"--host {host}: {why}; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from others, "
        "too"
    )
