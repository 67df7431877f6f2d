"""The surroundings that tests/conftest.py and pyproject.toml promise."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pytest_socket import SocketConnectBlockedError


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_other_machines_are_out_of_reach():
    # 192.0.2.1 belongs to no machine (RFC 5737); the connection must fail before anything is sent
    with socket.socket() as client, pytest.raises(SocketConnectBlockedError):
        client.connect(("192.0.2.1", 443))


def test_this_machine_is_in_reach():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_the_hub_is_out_of_reach():
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert constants.HF_HUB_OFFLINE
    assert Path(constants.HF_HOME) == Path(os.environ["HF_HOME"])
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("mmemb-r1/no-such-model", "config.json")
