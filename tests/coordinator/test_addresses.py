"""Where the coordinator listens, and what its invitations say, with this machine's real sockets."""

import argparse
import os
import socket
import stat

import pytest

from coordinator import addresses, serve
from coordinator.protocol import keys


@pytest.mark.parametrize("host", ["", "::"])
def test_everywhere_means_both_families_on_one_port(host):
    listening = addresses.listen(host, 0)
    port = listening[0].getsockname()[1]
    try:
        assert {each.getsockname()[1] for each in listening} == {port}
        socket.create_connection(("127.0.0.1", port), 5).close()
        if len(listening) > 1:  # a machine with IPv6
            socket.create_connection(("::1", port), 5).close()
    finally:
        for each in listening:
            each.close()


def test_a_host_is_listened_on_alone():
    (listening,) = addresses.listen("127.0.0.1", 0)
    with listening, pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", listening.getsockname()[1]), 1)


def test_an_invitation_names_an_address_that_leads_here():
    (listening,) = addresses.listen("0.0.0.0", 0)
    with listening:
        address = addresses.invited("::", listening.getsockname()[1])
        host, _, port = address.removeprefix("https://").rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), socket.AF_INET, socket.SOCK_STREAM)
        assert found
        socket.create_connection(found[0][4], 5).close()


def test_a_name_that_mdns_answers_for_is_in_invitations(monkeypatch):
    here = addresses._address(socket.AF_INET, "192.0.2.1")
    if here is None:
        pytest.skip("this machine has no route")
    monkeypatch.setattr(socket, "gethostname", lambda: "kitchen.example")
    for answer, expected in (
        (here, "https://kitchen.local:1"),
        ("127.0.1.1", f"https://{here}:1"),
        ("192.0.2.9", f"https://{here}:1"),
    ):
        monkeypatch.setattr(addresses, "_resolve", lambda name, answer=answer: [(socket.AF_INET, answer)])
        assert addresses.invited("::", 1) == expected
    assert addresses.invited("fd00::1", 1) == "https://[fd00::1]:1"


@pytest.mark.parametrize("text", ["https://pi:0", "https://pi:65536", "https://pi:99999", "https://pi:", "http://pi:1", "pi:1"])
def test_an_address_that_devices_cannot_reach_is_wrong_usage(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no address: write https://HOST:PORT"):
        addresses.check_address(text)


@pytest.mark.parametrize("text", ["https://pi", "https://pi.local:1", "https://192.0.2.7:65535", "https://[fd00::1]:8443"])
def test_an_address_that_is_taken_is_one_that_devices_take(text):
    link = keys.link(addresses.check_address(text), keys.new_code(), bytes(32))
    assert keys.read_link(link)[0] == text


def test_a_folder_in_which_others_may_write_is_closed_to_them(tmp_path):
    os.chmod(tmp_path, 0o777)
    serve._close_to_others(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
