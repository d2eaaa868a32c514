"""Three virtual devices with made-up text, on the tiny base."""

import json

import pytest

from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.simulate import recipe as recipes
from comigs_edge.simulate import texts
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.methods.catalogue import find_method
from comigs_edge.simulate.plan import Plan
from tests.tiny import some_text

RECIPE = """
about = "Three devices"
devices.a = { text = "a" }
devices.b = { text = "b", specialists = 2 }
devices.c = { text = "c", specialists = 0, share = 0.5 }

[sizes.quick]
rounds = 3
local_steps = 3
router_period = 3
router_steps = 2
batch = 2
context = 32
training_tokens = 2000
validation_tokens = 600
test_tokens = 300
validation_rows = 4
measured_rounds = [1]
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One JSONL file a person, in a folder below."""
    root = tmp_path_factory.mktemp("text")
    (root / "below").mkdir()
    for seed, name in enumerate("abc"):
        lines = [json.dumps({"text": paragraph}) for paragraph in some_text(24, seed).split("\n\n")]
        (root / "below" / f"{name}.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def recipe_file(tmp_path):
    """Writes the recipe, with a change; returns its path."""

    def write(old="", new=""):
        assert old in RECIPE
        path = tmp_path / "three.toml"
        path.write_text(RECIPE.replace(old, new, 1) if old else RECIPE)
        return path

    return write


@pytest.fixture
def recipe(recipe_file):
    return recipes.read(recipe_file())


@pytest.fixture(scope="session")
def tokenizer(tiny_path):
    return Tokenizer(tiny_path)


@pytest.fixture(scope="session")
def read_texts(folder, tokenizer):
    """Reads the text of a recipe, once."""
    found = {}

    def read(recipe):
        size = recipe.size("quick")
        if (key := repr((recipe.devices, size, recipe.target))) not in found:
            found[key] = texts.read(recipe, size, folder, tokenizer, lambda done, total: None)
        return found[key]

    return read


@pytest.fixture
def fleet(tiny_base, recipe, read_texts):
    """Makes a fleet of a method, or of one by its name."""
    text = read_texts(recipe)

    def make(method, seed=0, leaky=False, found=recipe):
        made = find_method(method) if isinstance(method, str) else method
        return Fleet(tiny_base, Plan(found, found.size("quick"), made, seed, leaky), text)

    return make
