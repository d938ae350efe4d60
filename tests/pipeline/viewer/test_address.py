"""The address that the viewer listens on: refused in one sentence, before Gradio is loaded."""

import socket

import pytest

from pipeline.errors import ConfigError
from pipeline.viewer.address import free_port
from pipeline.viewer.config import PatchViewerConfig


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_named(host):
    with pytest.raises(ConfigError, match=f"^--host {host}: is no address of this machine; "):
        free_port(PatchViewerConfig(host=host, port=0))


def test_a_port_in_use_is_named_and_another_found():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            free_port(PatchViewerConfig(port=port))
        assert str(raised.value) == (
            f"--port {port}: cannot listen on 127.0.0.1: Address already in use; choose another, "
            "or 0 for any that is free"
        )
        assert free_port(PatchViewerConfig(port=0)) not in (0, port)
