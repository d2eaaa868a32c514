"""A fleet in a folder, and one device in it."""

import pytest

from tests.fleet.rig import Device, FolderFleet


@pytest.fixture
def fleet(tmp_path):
    return FolderFleet(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path, fleet):
    """One that is alone in its fleet, with generalist 0."""
    device = Device(tmp_path / "home").join_folder(fleet, "device")
    device.exchange(tokens=0)
    fleet.close()
    device.exchange(tokens=0)
    return device
