"""Hardware recipes: chosen by memory, changed by key, and out of memory names the key to lower."""

import numpy as np
import pytest
import torch

from sumlib.config.schema import ConfigError
from sumlib.pipeline.own.recipes import (
    RECIPES,
    MemoryExceeded,
    choose_recipe,
    lowered,
    names_the_key,
    recipe_of_memory,
    tuning_for,
)


def test_the_recipes_are_those_that_projects_may_name():
    assert list(RECIPES) == ["cpu", "8gb", "16gb", "24gb", "80gb"]
    for name, recipe in RECIPES.items():
        assert choose_recipe(name) == (name, recipe)
        assert recipe.prompts_at_once >= recipe.images_at_once


@pytest.mark.parametrize(
    "gigabytes, name",
    [
        (8.36, "8gb"),
        (11.5, "8gb"),
        (15.6, "16gb"),
        (25.4, "24gb"),
        (47.8, "24gb"),
        (85, "80gb"),
        (150, "80gb"),
    ],
)
def test_auto_goes_by_the_memory_that_cards_really_have(gigabytes, name):
    assert recipe_of_memory(int(gigabytes * 1e9)) == name


def test_a_small_card_gets_the_smallest_recipe_and_a_word(capsys):
    assert recipe_of_memory(6_200_000_000) == "8gb"
    assert "6.2 GB" in capsys.readouterr().out


def test_auto_on_a_cpu():
    assert choose_recipe("auto", device=torch.device("cpu"))[0] == "cpu"


def test_single_keys_are_changed_and_checked():
    name, recipe = choose_recipe("16gb", {"prompts_at_once": 2, "loss_side": "low"})
    assert (name, recipe.prompts_at_once, recipe.loss_side) == ("16gb", 2, "low")
    assert recipe.workers == RECIPES["16gb"].workers
    for changes, message in [
        ({"prompt_at_once": 2}, "unknown key 16gb.prompt_at_once; the nearest known one is prompts_at_once"),
        ({"bf16": "yes"}, "16gb.bf16 is 'yes'; allowed: true or false"),
        ({"images_at_once": 0}, "at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            choose_recipe("16gb", changes)
    with pytest.raises(ConfigError, match="the nearest is 24gb"):
        choose_recipe("25gb")


@pytest.mark.parametrize(
    "name, parameters, tuning",
    [
        ("cpu", 94e6, "decoder"),
        ("8gb", 94e6, "full"),
        ("8gb", 312e6, "lora"),
        ("16gb", 312e6, "full"),
        ("16gb", 641e6, "lora"),
        ("24gb", 641e6, "full"),
    ],
)
def test_full_tuning_where_its_optimiser_fits(name, parameters, tuning):
    assert tuning_for(RECIPES[name], int(parameters)) == tuning


def test_lowering_ends_and_first_changes_no_result():
    recipe, keys = RECIPES["80gb"], []
    while step := lowered(recipe):
        key, recipe = step
        keys.append(key)
    assert keys == [
        *["images_at_once"] * 2,
        *["prompts_at_once"] * 5,
        "checkpointing",
        "loss_side",
        "tuning",
        *["input_side"] * 2,
    ]
    assert lowered(RECIPES["80gb"], training=False)[0] == "images_at_once"
    assert lowered(RECIPES["8gb"], training=False)[0] == "decoder_chunk"


def huge_tensor():
    torch.empty(2**50, dtype=torch.uint8)  # the allocator of the CPU refuses


def huge_array():
    np.empty(2**60, np.uint8)


def gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 7.9")


@pytest.mark.parametrize(
    "work, size",
    [(huge_tensor, "bytes"), (huge_array, "^out of memory: "), (gpu, r"\(2.50 GiB more were asked for\)")],
)
def test_out_of_memory_names_the_key_to_lower(work, size):
    recipe, caught = RECIPES["16gb"], pytest.raises(MemoryExceeded, match=size)
    with caught as error, names_the_key(recipe), names_the_key(recipe):
        work()
    message = str(error.value)
    assert "set prompts_at_once to 4 (it is 8; the results stay the same)" in message
    assert message.endswith(", or take the recipe 8gb")


def test_the_last_message_knows_no_key():
    smallest = RECIPES["8gb"]
    while step := lowered(smallest):
        smallest = step[1]
    with pytest.raises(MemoryExceeded, match="take a smaller model"), names_the_key(smallest):
        huge_tensor()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^shapes differ$") as caught, names_the_key(RECIPES["cpu"]):
        raise RuntimeError("shapes differ")
    assert type(caught.value) is RuntimeError


def test_what_changes_the_results_says_so():
    _, recipe = choose_recipe("8gb", {"prompts_at_once": 1})
    message = r"set loss_side to low \(it is full; this changes the results\)"
    with pytest.raises(MemoryExceeded, match=message), names_the_key(recipe):
        huge_tensor()
