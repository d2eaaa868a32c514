"""What the tests of the server share."""

import pytest

from tests.inference.served import Served, learn, make_home


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_path, tiny_base):
    home = make_home(tmp_path_factory.mktemp("serve") / "home", tiny_path)
    learn(home, tiny_base.hparams, 1)
    return home


@pytest.fixture(scope="module")
def served(trained):
    running = Served(trained)
    yield running
    running.stop()
