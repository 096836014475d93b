"""Whisper against transformers: from sound to frames, the model, what it says of short and long sounds, and when.

tests/golden/families/whisper.py says what a speech.npz holds; tests/tones.py makes the sounds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference import GOLDEN, close, compiled, names, part, read, same_directory
from strings import strings
from tones import RATE, signals, speech

import zoo
from zoo import whisper
from zoo.__main__ import main
from zoo.checkpoint.rules import to_reference
from zoo.core import Frames, Tokens
from zoo.nn import audio
from zoo.transcribe import windows
from zoo.transcribe.alignment import dynamic_time_warping, median_filter, token_ends, words_of
from zoo.transcribe.sound import resampled
from zoo.transcribe.timestamps import Span, TimestampRules, spans
from zoo.variants import count_parameters

CASES = names("speech.npz")
each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def case_of(name: str) -> SimpleNamespace:
    case = read(name, "speech.npz")
    case.short, case.long = (json.loads(str(case.golden[f"{key}:json"])) for key in ("short", "long"))
    return case


def language_of(name: str, seed: int) -> str:
    return "de" if name != "whisper_en" and seed % 2 else "en"


@each_case
def test_frames_are_the_references(name):
    """Filters to 1e-7; frames of noise, silence, a chirp, less than a window and more than 30 s to 1e-4."""
    golden, bands = case_of(name).golden, case_of(name).model.config.mels
    np.testing.assert_allclose(audio.mel_filters(bands), golden["out:filters"], atol=1e-7)
    for kind, sound in signals().items():
        frames = audio.frames_of(sound, bands, 0 if kind == "long" else 3000)
        close(np.concatenate([frames[::61], frames[-1:]]), golden[f"out:frames:{kind}"], kind, 1e-4)


def test_frames_of_many_recordings_at_once():
    """As a batch of one length, and by chunks of any length: the same numbers."""
    sounds = np.stack([signals()["noise"][: 2 * RATE], signals()["chirp"][: 2 * RATE]])
    batch = np.asarray(jax.jit(audio.log_mel, static_argnums=1)(sounds, 80))
    assert batch.shape == (2, 200, 80)
    for row, sound in zip(batch, sounds, strict=True):
        np.testing.assert_allclose(row, audio.frames_of(sound, 80), atol=1e-5)


def near(actual, desired, what: str) -> None:
    """To a millionth of the largest number: logits of a trained model go up to 30."""
    close(actual, desired, what, 1e-6 * np.abs(desired).max())


@each_case
def test_logits_layers_and_gradients(name):
    case = case_of(name)
    target = Tokens(case.golden["in:target_ids"], case.golden["in:target_mask"])
    window = 2 * case.model.config.max_source_len
    values = np.random.default_rng(0).standard_normal((3, window, case.model.config.mels)).astype(np.float32)
    logits, hidden, gradient, stepwise = compiled(case.model)(case.params, Frames(values, np.ones((3, window), bool)), target)
    for x, what in ((logits, "logits"), (stepwise, "logits step by step")):
        near(x * target.mask[..., None], case.golden["out:logits"], what)
    for layer, wanted in part(case.golden, "out:hidden:").items():
        ours = hidden[layer][:, ::5] if layer.startswith("encoder") else hidden[layer] * target.mask[..., None]
        near(ours, wanted, layer)
    ours = to_reference(gradient, case.model.RULES)
    assert not ours["model.encoder.embed_positions.weight"].any(), "the sinusoids are trained"
    wanted = part(case.golden, "grad:")
    assert (name != "whisper") or set(ours) - set(wanted) == {"model.encoder.embed_positions.weight"}
    for key, x in wanted.items():
        close(ours[key], x, f"gradient of {key}", 1e-4)

    sounds = [audio.frames_of(speech(1000 + i, 1.0 + i)[0], case.model.config.mels, window) for i in range(3)]
    heard = compiled(case.model)(case.params, Frames(np.stack(sounds), np.ones((3, window), bool)), target)[0]
    wanted = case.golden["out:logits_of_sound"]
    assert np.abs(heard * target.mask[..., None] - wanted).max() <= 1e-4 * np.abs(wanted).max()


@each_case
def test_short_sounds(name):
    """Greedy search and beam 4 as the model's files have it, the languages that are found, and translation."""
    case = case_of(name)
    said, seeds = case.short, case.short["seeds"]
    sounds = [speech(seed, 1.4 + 0.1 * (seed % 17), language_of(name, seed))[0] for seed in seeds]
    assert len(seeds) >= 8
    for search, beams in (("greedy", 1), ("beam", 4)):
        found = case.predictor.predictions(sounds, temperatures=(0.0,), no_speech=2.0, beams=beams)
        assert [tokens_of(x) for x in found] == said[search], search
        if search == "greedy":
            assert [x.text for x in found] == [text.strip() for text in said["texts"]]
        if "languages" in said:
            assert [f"<|{x.language}|>" for x in found] == said["languages"]
    if "translated" in said:
        found = case.predictor.predictions(sounds, language="de", task="translate", temperatures=(0.0,), no_speech=2.0)
        assert [tokens_of(x) for x in found] == said["translated"]


def tokens_of(transcript) -> list[int]:
    return [token for segment in transcript.segments for token in segment.tokens]


@each_case
def test_long_sounds(name):
    """Windows that move on with the timestamps, several recordings at once; words to the step of 0.02 s."""
    case, first_time = case_of(name), case_of(name).predictor.target_tokenizer.ids["<|0.00|>"]
    decode = case.predictor.target_tokenizer.text
    for condition, told in ((x, [c for c in case.long if c["condition"] == x]) for x in (False, True)):
        sounds = [speech(c["seed"], 7.3 + 0.5 * (c["seed"] % 5), language_of(name, c["seed"]))[0] for c in told]
        languages = {language_of(name, c["seed"]) for c in told}
        for language in sorted(languages):
            rows = [i for i, c in enumerate(told) if language_of(name, c["seed"]) == language]
            found = case.predictor.predictions(
                [sounds[i] for i in rows],
                timestamps="word",
                temperatures=(0.0,),
                no_speech=2.0,
                independent=not condition,
                language="" if name == "whisper_en" else language,
            )
            for transcript, i in zip(found, rows, strict=True):
                wanted = [s for s in told[i]["segments"] if decode([t for t in s["tokens"] if t < first_time]).strip()]
                assert [(s.start, s.end) for s in transcript.segments] == [
                    (round(s["start"], 2), round(s["end"], 2)) for s in wanted
                ]
                for ours, theirs in zip(transcript.segments, wanted, strict=True):
                    assert ours.tokens == theirs["tokens"][: len(ours.tokens)]  # theirs may hold the next one's beginning
                    times = dict(enumerate(theirs["times"]))
                    ends = [times[max(i for i in range(len(ours.tokens)) if ours.tokens[i] < first_time)]]
                    assert abs(ours.words[-1].end - ends[-1]) <= 0.02 + 1e-6
                    assert all(min(abs(word.end - t) for t in theirs["times"]) <= 0.02 + 1e-6 for word in ours.words)
                    assert "".join(word.text for word in ours.words).replace(" ", "") == ours.text.replace(" ", "")


@each_case
def test_round_trips(name, tmp_path):
    """Out again as it came in: at once, and by way of this zoo's own format."""
    predictor = case_of(name).predictor
    zoo.save(predictor, tmp_path / "hf", format="huggingface")
    same_directory(tmp_path / "hf", GOLDEN / name)
    zoo.save(predictor, tmp_path / "zoo")
    again = zoo.load(tmp_path / "zoo")
    assert (again.decoding, again.model.config, again.origin) == (predictor.decoding, predictor.model.config, predictor.origin)


def test_the_tokenizer_agrees():
    golden, tokenizer = case_of("whisper").golden, case_of("whisper").predictor.target_tokenizer
    wanted = np.split(golden["tokens:target"], np.cumsum(golden["tokens:target_lengths"])[:-1])
    prompt = tokenizer.encode("")
    for text, ours, theirs in zip(strings(), tokenizer.encode_batch(strings()), wanted, strict=True):
        assert ours[len(prompt) - 1 : -1] == theirs.tolist(), repr(text)
    assert tokenizer.names[tokenizer.encode("a")[0]] == "<|startoftranscript|>"


def test_parameter_counts():
    """As transformers counts those of the published checkpoints."""
    counts = {"whisper-tiny": 37_760_640, "whisper-tiny.en": 37_760_256}
    assert {name: count_parameters(whisper.PRESETS[name]) for name in counts} == counts


def python_rules(logits: np.ndarray, said: list[int], begin: int, end: int, unstamped: int, last: int) -> np.ndarray:
    """What one row may say next, by the reference's own conditions."""
    x = logits.copy()
    x[unstamped] = -np.inf
    last_was, before_was = bool(said) and said[-1] >= begin, len(said) < 2 or said[-2] >= begin
    if last_was and before_was:
        x[begin:] = -np.inf
    elif last_was:
        x[:end] = -np.inf
    if times := [token for token in said if token >= begin]:
        x[begin : times[-1] + (not (last_was and not before_was))] = -np.inf
    if not said:
        x[:begin] = x[last + 1 :] = -np.inf
    p = np.exp(x - x.max())
    if p[begin:].sum() > p[:begin].max():
        x[:begin] = -np.inf
    return x


def test_timestamp_rules():
    """In every state of a short output, with a prefix before it or none, against a row at a time in Python."""
    rng = np.random.default_rng(0)
    begin, end, unstamped, vocab = 12, 8, 11, 20
    histories = [[], [12], [12, 3], [12, 3, 15], [13, 3, 15, 15], [13, 3, 15, 17, 4], [12, 3, 4], [12, 3, 5, 19]]
    rules = TimestampRules(*(np.int32(x) for x in (begin, end, unstamped, 15)))
    apply = jax.jit(rules.__call__)
    for prefix, scale in itertools.product((0, 2), (1.0, 4.0)):
        for step in range(6):
            chosen = [said for said in histories if len(said) == step]
            if not chosen:
                continue
            logits = (scale * rng.standard_normal((8, vocab))).astype(np.float32)
            rows = [chosen[i % len(chosen)] for i in range(8)]
            ids = np.array([[18] * prefix + said + [19] * (8 - prefix - step) for said in rows], np.int32)
            found = np.asarray(apply(logits, ids, np.int32(step + prefix), np.full(8, prefix, np.int32)))
            wanted = np.stack([python_rules(x, said, begin, end, unstamped, 15) for x, said in zip(logits, rows, strict=True)])
            np.testing.assert_array_equal(found, wanted)


def test_spans():
    """Pairs cut; a single timestamp at the end says that nothing follows; without pairs the window is one segment."""
    b = 100
    assert spans([100, 1, 110, 110, 2, 120], b, 300) == ([Span(0, 10, 0, 3), Span(10, 20, 3, 6)], 300)
    assert spans([100, 1, 110, 115, 2], b, 300) == ([Span(0, 10, 0, 3)], 20)
    assert spans([100, 1, 2], b, 300) == ([Span(0, 150, 0, 3)], 300)
    assert spans([100, 1, 2, 130], b, 300) == ([Span(0, 30, 0, 4)], 300)
    assert spans([], b, 300) == ([Span(0, 150, 0, 0)], 300)


def test_dynamic_time_warping_against_every_path():
    rng = np.random.default_rng(0)

    def paths(i, j):
        if (i, j) == (0, 0):
            yield ((0, 0),)
        for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)):
            if a >= 0 and b >= 0:
                yield from ((*path, (i, j)) for path in paths(a, b))

    for shape in [(1, 1), (1, 5), (5, 1), (2, 3), (4, 5), (5, 4)]:
        cost = rng.standard_normal(shape)
        found = list(zip(*(x.tolist() for x in dynamic_time_warping(cost)), strict=True))
        best = min(paths(shape[0] - 1, shape[1] - 1), key=lambda path: sum(cost[cell] for cell in path))
        assert found == list(best)


def test_median_filter_against_scipy():
    from scipy.ndimage import median_filter as scipys

    x = np.random.default_rng(0).standard_normal((3, 4, 20))
    np.testing.assert_array_equal(median_filter(x, 7), scipys(x, size=(1, 1, 7), mode="mirror"))
    np.testing.assert_array_equal(median_filter(x[..., :3], 7), x[..., :3])


def test_tokens_end_where_attention_moves_on():
    weights = np.full((2, 3, 12), 0.01)
    for row, (first, last) in enumerate(((0, 4), (4, 8), (8, 12))):
        weights[:, row, first:last] = 1.0
    assert token_ends(weights).tolist() == [0, 4, 8]
    assert np.isfinite(token_ends(np.ones((1, 1, 5)))).all()


def test_words_are_split_at_spaces_and_never_inside_a_character():
    pieces = [b" Hel", b"lo", b",", b" \xc3", b"\xa9t\xc3\xa9", b"\xe6\x88\x91", b"\xe5\xbe\x88"]
    text = lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")  # noqa: E731
    assert words_of([0, 1, 2, 3, 4], text, "en") == [(" Hello,", 0, 3), (" été", 3, 5)]
    assert words_of([5, 6], text, "zh") == [("我", 0, 1), ("很", 1, 2)]


def with_attempts(monkeypatch, attempts: dict[float, windows.Attempt], silent: bool = False) -> list[float]:
    """Replace the search by these results; returns the temperatures that were tried."""
    tried = []

    def search(self, memory, rows, prompts, stamped, temperature, seeds):
        tried.append(temperature)
        return [attempts[temperature] for _ in rows]

    monkeypatch.setattr(windows.Run, "search", search)
    monkeypatch.setattr(windows.Run, "is_silence", lambda *_: silent)
    return tried


def test_a_window_is_tried_again_at_higher_temperatures(monkeypatch):
    """While its text repeats itself or is improbable; improbable text where nobody speaks is none."""
    predictor, sound = case_of("whisper").predictor, [np.zeros(RATE, np.float32)]
    make = lambda t, log_prob, ratio: windows.Attempt([5], f"said at {t}", t, log_prob, ratio)  # noqa: E731
    attempts = {0.0: make(0.0, -0.1, 3.0), 0.2: make(0.2, -2.0, 1.0), 0.4: make(0.4, -0.5, 1.0), 0.6: make(0.6, -0.1, 1.0)}
    with monkeypatch.context() as patch:
        tried = with_attempts(patch, attempts)
        found = predictor.predictions(sound, language="en", temperatures=(0.0, 0.2, 0.4, 0.6))[0]
        assert tried == [0.0, 0.2, 0.4]
        assert found.segments[0].temperature == 0.4
    with monkeypatch.context() as patch:
        tried = with_attempts(patch, attempts)
        found = predictor.predictions(sound, language="en", temperatures=(0.0, 0.2), compression_ratio=2.4)[0]
        assert (tried, found.segments[0].temperature) == ([0.0, 0.2], 0.2)
    with monkeypatch.context() as patch:
        tried = with_attempts(patch, attempts)
        predictor.predictions(sound, language="en", temperatures=(0.0, 0.6), compression_ratio=4.0)
        assert tried == [0.0]
    with monkeypatch.context() as patch:
        tried = with_attempts(patch, {0.0: make(0.0, -2.0, 1.0)}, silent=True)
        found = predictor.predictions(sound, language="en")[0]
        assert (tried, found.text, found.segments) == ([0.0], "", [])


def test_draws_hang_on_the_seed_and_rules_hold():
    """A hot window of a sound: other tokens for another seed, the same for the same, and timestamps in order."""
    predictor, sound = case_of("whisper").predictor, [speech(2000, 2.6)[0]]
    say = lambda seed: predictor.predictions(  # noqa: E731
        sound, language="en", timestamps="segment", temperatures=(3.0,), no_speech=2.0, log_prob=-1e9, seed=seed
    )[0]
    first, again, other = say(1), say(1), say(2)
    assert first == again
    assert tokens_of(first) != tokens_of(other)
    for transcript in (first, other):
        times = [t for s in transcript.segments for t in (s.start, s.end)]
        assert times == sorted(times)


def test_silence_is_told_from_speech():
    predictor = case_of("whisper").predictor
    quiet = predictor.predictions([np.zeros(RATE, np.float32)], language="en", log_prob=0.0, temperatures=(0.0,))[0]
    loud = predictor.predictions([speech(2000, 2.6)[0]], language="en", log_prob=0.0, temperatures=(0.0,))[0]
    assert (quiet.text, bool(loud.text)) == ("", True)


def test_bad_input_is_one_error(tmp_path):
    predictor = case_of("whisper").predictor
    for recordings, options, message in (
        ("a.wav", {}, "write \\[recording\\]"),
        ([np.zeros((2, 100), np.float32)], {}, "one channel"),
        ([np.zeros(100, np.int16)], {}, "floats"),
        ([np.full(500, np.nan, np.float32)], {}, "not finite"),
        ([np.zeros(500, np.float32)], {"language": "xx"}, "'xx', which is not one of en, de, fr"),
        ([], {"task": "sing"}, "task is 'sing'"),
        ([], {"timestamps": "all"}, "timestamps is 'all'"),
        ([], {"temperatures": ()}, "temperatures"),
        ([], {"n_best": 2, "beams": 2}, "n_best is 2"),
        ([], {"wings": 2}, "no option 'wings'"),
    ):
        with pytest.raises(zoo.UserError, match=message):
            predictor.predict(recordings, **options)
    with pytest.raises(zoo.UserError, match="English alone"):
        case_of("whisper_en").predictor.predict([np.zeros(500, np.float32)], language="de")
    assert predictor.predict([np.zeros(0, np.float32)]) == [""]
    files = {**predictor.target_tokenizer.files, "preprocessor_config.json": b'{"feature_size": 128}'}
    tokenizer = type(predictor.target_tokenizer)(files, "target", predictor.model.config.target_vocab_size, 290)
    with pytest.raises(zoo.UserError, match=r"feature_size in preprocessor_config\.json is 128"):
        dataclasses.replace(predictor, target_tokenizer=tokenizer)


def test_other_rates_are_resampled():
    """A pitch stays where it was."""
    time = np.arange(8000) / 8000
    sound = resampled(np.sin(2 * np.pi * 440 * time).astype(np.float32), 8000)
    assert len(sound) == RATE
    assert np.argmax(np.abs(np.fft.rfft(sound))) == 440


def test_command_line(tmp_path, capsys):
    """Sound files in, text, lines with times or JSON out."""
    soundfile = pytest.importorskip("soundfile")
    sound, _ = speech(2000, 2.6)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, sound, RATE, subtype="PCM_24")
    directory, paths = str(GOLDEN / "whisper"), [str(tmp_path / name) for name in ("a.wav", "a.flac")]
    options = ["--language", "en", "--temperatures", "0"]
    wanted = case_of("whisper").predictor.predict([sound], language="en", temperatures=(0.0,))[0]
    assert main(["predict", directory, *paths, *options]) == 0
    assert capsys.readouterr().out.splitlines() == [wanted] * 2
    assert main(["predict", directory, paths[0], *options, "--timestamps", "word", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["language"] == "en"
    assert [set(word) for word in said["segments"][0]["words"]][:1] == [{"start", "end", "text"}]
    (tmp_path / "b.wav").write_text("no sound")
    for path in ("b.wav", "c.wav"):
        assert main(["predict", directory, str(tmp_path / path)]) == 2
