"""Weights of classes in a search file: what may be written, what is refused, and what a space makes of it."""

import json

import jsonschema
import pytest

from vit_search.config import search_file
from vit_search.config.class_weights import as_text, by_class
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import SpecError
from vit_search.planning.fixed_file import fixed_file

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"


def spec(training, rest=""):
    return search_file.parse(f"{HEAD}training: {training}\n{rest}")


@pytest.mark.parametrize("word", ["none", "balanced"])
def test_a_word_stays_as_it_is(word):
    assert spec(f"{{class_weights: {word}}}").training.class_weights == word
    assert by_class(word) == {}


def test_weights_by_class_are_one_text_whatever_their_order_and_spelling():
    assert spec("{class_weights: {cat: 2, bee: 0.5}}").training.class_weights == '{"bee": 0.5, "cat": 2.0}'
    assert spec("{class_weights: {bee: 0.5, cat: 2.0}}").space.space_hash == spec("{class_weights: {cat: 2, bee: 0.5}}").space.space_hash
    assert spec("{class_weights: {cat: 3}}").space.space_hash != spec("{class_weights: {cat: 2}}").space.space_hash
    assert by_class('{"bee": 0.5, "cat": 2.0}') == {"bee": 0.5, "cat": 2.0}
    assert as_text(as_text({"ä": 1})) == '{"ä": 1.0}'


def test_a_class_may_be_called_as_a_distribution_is():
    assert by_class(spec("{class_weights: {int: 2, float: 3, choice: 4}}").training.class_weights) == {"int": 2, "float": 3, "choice": 4}


def test_weights_are_searched_as_any_choice():
    searched = spec(
        "{class_weights: {choice: [none, balanced, {cat: 2}], when: \"sampling == 'uniform'\", else: {cat: 3}}, "
        "sampling: {choice: [uniform, balanced]}}",
        "start_with: [{sampling: uniform, class_weights: {cat: 2.0}}]",
    )
    weights = ["none", "balanced", '{"cat": 2.0}']
    assert searched.space.possible_values("class_weights") == [*weights, '{"cat": 3.0}']
    assert {params.get("class_weights", "inactive") for params in searched.space.grid()} == {*weights, "inactive"}
    assert searched.space.complete({"sampling": "balanced"})["class_weights"] == '{"cat": 3.0}'
    assert searched.start_with == [{"sampling": "uniform", "class_weights": '{"cat": 2.0}'}]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("balancd", "balancd will not do; write none, balanced, or a weight for each class, as {cat: 2, dog: 0.5}."),
        ("3", "3 will not do; write none"),
        ("null", "null will not do; write none"),
        ("{}", "{} will not do; write none"),
        ("{cat: 0}", "the weight of cat is 0; give a number above 0, at most 1,000,000."),
        ("{cat: 2e6}", "the weight of cat is 2000000.0; give a number"),
        ("{cat: true}", "the weight of cat is true; give a number"),
        ("{cat: [1, 2]}", "the weight of cat is [1, 2]; give a number"),
        ("{0: 2}", "the key 0 is no text; quote it."),
    ],
)
def test_what_is_no_weight_is_one_line_with_the_mend(weights, said):
    for training, key in (
        (f"{{class_weights: {weights}}}", "class_weights: "),
        (f"{{class_weights: {{choice: [none, {weights}]}}}}", "class_weights.choice.1: "),
        (f'{{class_weights: {{choice: [none, balanced], when: "momentum > 0", else: {weights}}}}}', "class_weights.else: "),
    ):
        with pytest.raises(SpecError) as error:
            spec(training)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(f"search file:5: training.{key}")


def test_a_condition_may_ask_for_the_words_and_for_nothing_else():
    assert spec("{class_weights: {choice: [none, balanced]}, lr: {choice: [0.1, 0.2], when: \"class_weights == 'balanced'\"}}")
    with pytest.raises(SpecError, match=r"training\.lr\.when: class_weights is never balancd; did you mean balanced\?"):
        spec("{class_weights: {choice: [none, balanced]}, lr: {choice: [0.1, 0.2], when: \"class_weights == 'balancd'\"}}")


def test_an_unknown_class_is_refused_with_the_nearest_name():
    weighted = spec("{class_weights: {choice: [none, {cats: 2}]}}")
    weighted.check_classes(["cats", "dogs"])
    with pytest.raises(SpecError, match=r"^training\.class_weights: the data has no class cats; did you mean cat\?$"):
        weighted.check_classes(["cat", "dog"])
    with pytest.raises(SpecError, match=r"no class cats; choose from 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … 20 more\.$"):
        weighted.check_classes([str(i) for i in range(30)])
    spec("{class_weights: {choice: [none, balanced]}}").check_classes(["0", "1"])


def test_a_configuration_keeps_its_weights_through_json_and_through_a_search_file():
    config = spec("{class_weights: {cat: 2}}").trial_config({}, in_channels=1, num_classes=10, trial=0)
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    written = fixed_file(config, name="t", about=[], rest={})
    assert written.same
    assert "class_weights: {cat: 2.0}\n" in written.text


def test_a_configuration_with_damaged_weights_is_refused():
    with pytest.raises(SpecError, match="class_weights: x will not do"):
        TrainingConfig(class_weights="x")


@pytest.mark.parametrize(
    ("weights", "fits"),
    [
        ("balanced", True),
        ({"cat": 2}, True),
        ({"choice": ["none", {"cat": 2}]}, True),
        ("balancd", False),
        ({"cat": 0}, False),
        ({"choice": ["x"]}, False),
    ],
)
def test_the_json_schema_knows_the_forms_of_weights(weights, fits):
    schema = search_file.json_schema()
    part = {"$defs": schema["$defs"], **schema["$defs"]["TrainingSection"]["properties"]["class_weights"]}
    assert jsonschema.Draft202012Validator(part).is_valid(weights) == fits
