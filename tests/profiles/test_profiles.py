"""The shipped profiles load and are plausible."""

import pytest

import profiles


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_is_plausible(name):
    profile = profiles.load(name)
    assert profile.description
    assert 0 <= profile.threads <= 16
    assert 1 <= profile.usable_threads <= profiles.available_cores()
    assert 256 <= profile.batch * profile.context <= 4096
    assert profile.specialists is None or 0 <= profile.specialists <= 7


def test_the_named_profiles_exist():
    assert {"auto", "laptop", "jetson", "jetson-agx", "pi4", "pi5"} <= set(profiles.names())


def test_an_unknown_profile_names_those_that_exist():
    with pytest.raises(profiles.ProfileError, match=r"'pi9' does not exist.*pi4"):
        profiles.load("pi9")
