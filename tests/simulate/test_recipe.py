"""Recipes: those that are shipped can be read, and what is wrong in one is said by name."""

import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.simulate import recipe as recipes
from comigs_edge.simulate.recipe import find, read, shipped_names

TUNED = ["chat", "devices", "domains", "multilingual", "quantity", "topics-ood"]
JUDGED = ["chat-judged", "domains-judged", "multilingual-judged", "topics-ood-judged"]
FOUR = TUNED + JUDGED  # recipes of four devices


def test_every_shipped_recipe_can_be_read_and_has_its_three_sizes():
    for name in FOUR:
        recipe = read(find(name))
        assert list(recipe.sizes) == ["brief", "quick", "full"]
        assert len(recipe.devices) == 4
        for label, tokens in (("brief", 12800), ("quick", 25600)):
            size = recipe.size(label)
            assert size.rounds * size.local_steps * size.batch * size.context == tokens
            assert size.training_tokens == tokens  # each token once
        # The router's share of the steps is the paper's: 10 steps every 30.
        for size in recipe.sizes.values():
            assert 0.29 < size.router_steps / size.router_period < 0.34


def test_recipes_say_what_their_names_say():
    assert list(read(find("multilingual")).devices) == ["de", "fr", "it", "nl"]
    assert read(find("topics-ood")).target == "mix"
    assert {read(find(name)).target for name in shipped_names()} == {"own", "mix"}
    assert sorted(device.share for device in read(find("quantity")).devices.values()) == [0.25, 0.25, 1.0, 1.0]
    assert [device.specialists for device in read(find("devices")).devices.values()] == [0, 1, 2, 3]


def test_a_recipe_for_judging_is_another_one_with_text_that_no_other_recipe_has():
    assert shipped_names() == sorted([*FOUR, "many"])
    others = {device.text for name in shipped_names() if name not in JUDGED for device in read(find(name)).devices.values()}
    for name in JUDGED:
        judged, tuned = read(find(name)), read(find(name.removesuffix("-judged")))
        assert judged.judging > tuned.judging
        assert (judged.like, judged.target, judged.sizes) == (name.removesuffix("-judged"), tuned.target, tuned.sizes)
        assert not {device.text for device in judged.devices.values()} & others


def test_many_is_of_thirty_two_people_who_read_their_text_twice():
    recipe = read(find("many"))
    assert len(recipe.devices) == 32
    for name, size in recipe.sizes.items():
        assert size.training_tokens == int(name)
        assert size.rounds * size.local_steps * size.batch * size.context == 2 * size.training_tokens


def test_the_first_devices_of_a_recipe_are_a_recipe(recipe):
    assert list(recipe.first(2).devices) == ["a", "b"]
    assert recipe.first(None) == recipe.first(3) == recipe
    with pytest.raises(ComigsError, match="the recipe has 3 devices, not 4; leave --devices out for all of them"):
        recipe.first(4)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rounds = 3", "round = 3", r"unknown key 'round' in \[sizes.quick\] .did you mean 'rounds'"),
        ("about", "qqq", r"unknown key 'qqq' at the top .known: about, devices"),
        ("rounds = 3", "rounds = 0", r"sizes.quick.rounds = 0 must be a whole number between 1 and"),
        ("rounds = 3", 'rounds = "3"', r"sizes.quick.rounds = '3' must be a whole number between"),
        ("rounds = 3\n", "", r"rounds missing in \[sizes.quick\]"),
        ("measured_rounds = [1]", "measured_rounds = [4]", r"measured_rounds = 4 must be between 1 and 3"),
        (
            "measured_rounds = [1]",
            "measured_rounds = 1",
            r"measured_rounds = 1 must be a list, each a whole number between 1 and",
        ),
        ("share = 0.5", "share = 2", r"devices.c.share = 2 must be a number between 0.001 and 1"),
        ("\n[sizes", '\ntarget = "others"\n[sizes', r"target = 'others' must be one of own, mix"),
        ("\n[sizes", "\ntarget = 1\n[sizes", r"target = 1 must be one of own, mix"),
        ("\n[sizes", '\nexchange.update_format = "int8"\n[sizes', r"must be one of float32, float16"),
        ("\n[sizes", "\nexperts = 8\n[sizes", r"experts must be a section, \[experts\]"),
        ('devices.a = { text = "a" }', "devices.a = 1", r"devices.a must be a section"),
        ("about =", "about = =", r"cannot be read"),
        ("about =", 'like = "nothing"\nabout =', r"there is no recipe nothing; name a TOML file or one of chat"),
    ],
)
def test_what_is_wrong_is_said_by_name(recipe_file, old, new, sentence):
    with pytest.raises(ComigsError, match=sentence):
        read(recipe_file(old, new))


def test_a_recipe_or_a_size_that_is_not_there_is_a_sentence(recipe):
    with pytest.raises(ComigsError, match="no recipe nonsense; name a TOML file or one of chat, "):
        find("nonsense")
    with pytest.raises(ComigsError, match="no size 'huge'; it has quick"):
        recipe.size("huge")


def test_the_defaults_are_the_papers():
    experts, training = recipes.ExpertRecipe(), recipes.TrainingRecipe()
    assert (experts.rank, experts.alpha, training.router_learning_rate) == (8, 16.0, 2e-3)
