"""Whatever a config file, the command line, a saved configuration or a caller says: a result or one ``UserError``."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import ODD, WRONG, attempt, changed, places, texts
from tinies import VOCAB, tiny

import zoo
from train import experiment, memory, parallel
from train.__main__ import parse, read_config
from zoo.core import UserError
from zoo.text import Tokenizer
from zoo.variants import config_from_json, config_to_json, from_fields, variants

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["quickstart", "transformer_tsv"])
def config(request) -> experiment.Experiment:
    return read_config(f"configs/{request.param}.py")


def fields(data, prefix: str = ""):
    """(dotted name, value) of each plain field."""
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        yield from (
            fields(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else [(prefix + field.name, value)]
        )


def replaced(data, name: str, value):
    first, _, rest = name.partition(".")
    return dataclasses.replace(data, **{first: replaced(getattr(data, first), rest, value) if rest else value})


# ---------------------------------------------------------------- experiments


def test_every_number_of_an_experiment_has_bounds(config):
    """Also those that are added later: what is absurd is refused by name, before anything is allocated."""
    experiment.check(config)
    for name, value in fields(config):
        if type(value) in (int, float):
            for absurd in (10**12, -(10**12), 10**400, *((math.nan, math.inf, -math.inf) if type(value) is float else ())):
                with pytest.raises(UserError, match=name.removeprefix("decoding.").replace(".", r"\.")):
                    experiment.check(replaced(config, name, absurd))


def test_every_field_of_an_experiment_has_a_type(config):
    """A config file is Python and may set anything."""
    for name, value in fields(config):
        for wrong in (None, "\ud800" if not isinstance(value, str) else 3, [1], {}, object(), b"", 1j, ("a",)):
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                experiment.check(replaced(config, name, wrong))
    for name in ("model", "data", "training", "decoding", "hosts"):
        for wrong in (None, 3, "x", config, config.batching):
            with pytest.raises(UserError, match=f"{name} is "):
                experiment.check(dataclasses.replace(config, **{name: wrong}))


WORDS = ["0", "1", "-1", "nan", "inf", "1e999", "1" + "0" * 30, "-1" + "0" * 30, "1" * 5000, "1_000", "٣", "None", "text"]
WORDS += ["", " ", "\0", "\ud800", "\x1b[31m", "[bold]", "(1,2)", "{}", ".*", "(", "--", "-h", "--help", "a" * 5000]
words = st.sampled_from(WORDS)


@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_options(config, data, capfd):
    names = ["--" + name.replace("_", "-") for name, _ in fields(config)]
    spoilt = st.builds(lambda name, at, word: name[:at] + word, st.sampled_from(names), st.integers(0, 20), words)
    option = st.tuples(st.sampled_from(names) | spoilt | words, st.lists(words, max_size=2))
    chosen = data.draw(st.lists(option, min_size=1, max_size=3))
    options = ["--workdir", "w", *(word for name, given in chosen for word in (name, *given))]
    parsed = attempt(parse_or_help, config, options)
    if parsed:
        attempt(experiment.check, parsed[0])
        json.dumps(experiment.to_json(parsed[0]))


def parse_or_help(config: experiment.Experiment, options: list[str]):
    """What ``parse`` gives; None if the help was printed, which ends a command well."""
    try:
        return parse(config, options, "c.py")
    except SystemExit as end:
        if end.code:
            raise
        return None


SOUND = "from configs.quickstart import experiment\nimport dataclasses\n"
LINES = ["raise SystemExit(3)", "1/0", "f = lambda: f()\nf()", "x = '\ud800'", "\0", "(", "\tx", "raise KeyError('experiment')"]
LINES += ["experiment = 3", "del experiment", "experiment = dataclasses.replace(experiment, seed='x')"]
LINES += ["experiment = dataclasses.replace(experiment, nothing=1)"]


@one_folder
@given(lines=st.lists(st.sampled_from(LINES) | texts, min_size=1, max_size=3), sound=st.booleans())
def test_any_config_file(tmp_path, lines, sound):
    path = tmp_path / "config.py"
    path.write_bytes((SOUND * sound + "\n".join(lines)).encode("utf-8", "surrogatepass"))
    found = attempt(read_config, str(path))
    if found:
        attempt(experiment.check, found)


@given(name=texts | st.sampled_from(["x" * 5000, "\0", "~", "/", "."]))
def test_any_name_of_a_config_file(name):
    assert attempt(read_config, name) is None


def test_a_state_larger_than_the_memory_is_refused_before_it_is_made():
    places = parallel.make(parallel.Parallel(devices=2))
    small = places.abstract(lambda: {"kernel": jax.numpy.zeros((8, 8)), "key": jax.random.key(0)})
    memory.check(small)
    large = places.abstract(lambda: {"kernel": jax.numpy.zeros((2**20, 2**20)), "bias": jax.numpy.zeros(3)})
    with pytest.raises(UserError, match=r"take 4,096\.0 GiB a device"):
        memory.check(large)
    sharded = parallel.make(parallel.Parallel("mesh", fsdp=8), ((r".*", jax.sharding.PartitionSpec("fsdp")),))
    with pytest.raises(UserError, match=r"take 512\.0 GiB a device"):
        memory.check(sharded.abstract(lambda: {"kernel": jax.numpy.zeros((2**20, 2**20))}))


@pytest.mark.parametrize("saved", [None, [], "x", 3, {}, {"model": 3}, {"seed": {"a": 1}}, {"data": [1]}])
def test_any_saved_experiment(config, saved):
    with pytest.raises(UserError, match="here"):
        experiment.check_same(saved, experiment.to_json(config), "here")


# ---------------------------------------------------------------- saved configurations


PRESETS = [preset for module in variants().values() for preset in {type(p): p for p in module.PRESETS.values()}.values()]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: type(preset).__name__)
def test_any_value_anywhere_in_a_saved_configuration(preset):
    good = config_to_json(preset)
    assert config_from_json(good, "file") == preset
    for path in places(good):
        for value in WRONG:
            found = attempt(config_from_json, changed(good, path, value), "file")
            if found:
                attempt(found.build)
    for name, value in fields(preset):
        if type(value) is int:
            with pytest.raises(UserError, match=name):
                config_from_json(changed(good, ("fields", name), 10**12), "file")


def test_any_value_anywhere_in_saved_decoding():
    good = dataclasses.asdict(zoo.Decoding())
    for path in places(good):
        for value in WRONG:
            found = attempt(from_fields, zoo.Decoding, changed(good, path, value), "file")
            assert found is None or isinstance(found, zoo.Decoding)
            if found:
                attempt(found.search, None)


# ---------------------------------------------------------------- the predictor


@pytest.fixture(scope="module")
def predictor() -> zoo.Predictor:
    """Of an untrained model, with a character for each id."""
    model, params = tiny("luong")
    tokenizer = Tokenizer.train("characters", ["".join(map(chr, range(ord("a"), ord("a") + VOCAB - 4)))])
    return zoo.Predictor(model, params, tokenizer, tokenizer, zoo.Decoding(max_len=4, max_source_len=8))


@given(inputs=st.lists(texts | st.sampled_from(["", ODD, "\ud800", "</s>", "a" * 1000]), max_size=2))
def test_any_texts_are_predicted(predictor, inputs):
    outputs = predictor.predict(inputs)
    assert len(outputs) == len(inputs)
    assert all(len(output) <= 4 for output in outputs)


def test_a_text_of_a_megabyte_is_predicted_as_its_beginning(predictor):
    assert predictor.predict(["abc" * 2**18]) == predictor.predict(["abcabca"])


@pytest.mark.parametrize("inputs", ["abc", [None], [b"abc"], ["a", 3], [["a"]]])
def test_what_is_no_list_of_texts_is_refused(predictor, inputs):
    with pytest.raises(UserError, match="predict takes a list of texts"):
        predictor.predict(inputs)


def test_any_option_of_a_prediction(predictor):
    for field in dataclasses.fields(zoo.Decoding):
        for wrong in (None, [1], "\0", 10**30, -1e30, math.nan, 1j, object()):
            with pytest.raises(UserError, match=f"^{field.name} is "):
                predictor.settings({field.name: wrong})


def test_ids_of_a_larger_vocabulary_are_never_decoded(predictor):
    for bad in (VOCAB, -1, 2**31, 10**30):
        with pytest.raises(UserError, match=f"token id {bad} is outside the vocabulary of {VOCAB}"):
            predictor.target_tokenizer.decode([5, bad])
        with pytest.raises(UserError, match=f"token id {bad} is outside"):
            predictor.target_tokenizer.decode([zoo.core.EOS, bad])
