"""Sound that models learn from: files of recordings, their batches, what Whisper is to say of them, and a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tones import RATE, WORDS, speech

import zoo
from train import tasks
from train.__main__ import main as train
from train.data import Batching, Files, Heard, Recordings, eval_batches, train_batches
from train.data.prefetch import Prefetch
from train.experiment import Experiment, check
from train.metrics import divide, token_metrics
from train.parallel import Pmap
from zoo import whisper
from zoo.__main__ import main as use
from zoo.core import Frames, Sound, Tokens, flatten_params, pad_tokens, shift_right
from zoo.marian import MarianConfig
from zoo.nn.audio import frames_of, log_mel
from zoo.nn.sharding import by_rows
from zoo.transcribe.sound import read_sound

soundfile = pytest.importorskip("soundfile")
pa = pytest.importorskip("pyarrow")

pytestmark = pytest.mark.xdist_group("audio_data")  # one worker: the run that most tests share is made once

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "whisper"
CONFIG = str(HERE.parent / "configs" / "whisper_finetune.py")
COUNT, WINDOW = 44, 300


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Sounds of English whose texts are German: what the model does not say yet. Three kinds of file, one of them too long."""
    folder, lines = tmp_path_factory.mktemp("sound"), []
    (folder / "clips").mkdir()
    for i in range(COUNT):
        sound, phrases = speech(5000 + i, 3.5 if i == 7 else 1.2 + 0.1 * (i % 14))
        said = [word for phrase in phrases if phrase.end <= len(sound) / RATE for word in phrase.words]
        name = f"clips/{i}.{'flac' if i % 3 == 0 else 'wav'}"
        two = np.stack([1.5 * sound, 0.5 * sound], axis=1)
        soundfile.write(folder / name, two if i % 5 == 0 else sound, RATE, subtype="PCM_16")
        lines.append(f"{name}\t{''.join(WORDS['de'][word] for word in said).strip()}\n")
    lines.insert(3, "\n")
    (folder / "train.tsv").write_text("".join(lines), encoding="utf-8")
    return folder / "train.tsv"


@pytest.fixture(scope="module")
def predictor() -> zoo.SpeechPredictor:
    return zoo.load(GOLDEN)


def heard(examples, predictor, language: str = "en") -> Heard:
    return Heard(examples, predictor.targets(language, "transcribe"), predictor.window)


def test_files_of_recordings_are_read(table, tmp_path):
    """By three formats alike; a split hangs on the paths as they are written, not on where the folder lies."""
    found = {split: Recordings(str(table)).load(split) for split in ("train", "validation", "test")}
    assert [len(examples) for examples in found.values()] == [COUNT - 4, 2, 2]
    paths = [example.source for examples in found.values() for example in examples]
    assert sorted(paths) == sorted(str(table.parent / line.split("\t")[0]) for line in table.read_text().split("\n") if line)
    moved = shutil.copytree(table.parent, tmp_path / "moved")
    rows = [line.split("\t") for line in table.read_text().splitlines() if line]
    records = [{"path": path, "said": text} for path, text in rows]
    (moved / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pa.parquet.write_table(pa.Table.from_pylist(records), moved / "train.parquet")
    for name, columns in (("train.tsv", {}), ("train.jsonl", COLUMNS), ("train.parquet", COLUMNS)):
        again = Recordings(str(moved / name), **columns).load("validation")
        assert [(Path(e.source).name, e.target) for e in again] == [
            (Path(e.source).name, e.target) for e in found["validation"]
        ]
        assert Path(again[0].source).parent == moved / "clips"


COLUMNS = {"source": "path", "target": "said"}


def test_batches_hold_the_sound_as_it_is_predicted(table, predictor):
    """Samples and targets of each row; what is too long is left out of training and counted, and cut for evaluation."""
    examples = Recordings(str(table), test=str(table)).load("test")
    data, batching = heard(examples, predictor), Batching(tokens=1200, max_source_len=WINDOW, max_target_len=40, buckets=2)
    shapes = data.shapes(batching, 2)
    assert len(shapes) == 2
    assert {shape[:2] for shape in shapes} == {(4, WINDOW)}
    stream = train_batches(data, batching, shapes, seed=0)
    seen = {}
    for _ in range(sum(divmod(COUNT, 4)) + 1):  # an epoch, whose batches of both shapes may be short
        batch = next(stream)
        assert batch.source.samples.shape == (4, 160 * WINDOW)
        assert (batch.source.samples.dtype, batch.target.ids.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(batch.source.mask, np.repeat((batch.example_ids >= 0)[:, None], WINDOW, 1))
        assert not batch.source.samples[batch.example_ids < 0].any()
        for row, i in enumerate(batch.example_ids):
            if i >= 0:
                seen[int(i)] = batch.source.samples[row], batch.target.ids[row][batch.target.mask[row]]
    assert stream.dropped == 1
    assert set(seen) == set(range(COUNT)) - {7}
    ids = predictor.target_tokenizer.ids
    for i, (samples, target) in seen.items():
        sound = read_sound(examples[i].source)
        np.testing.assert_array_equal(samples, np.pad(sound, (0, 160 * WINDOW - len(sound))))
        assert target[:3].tolist() == [ids[name] for name in ("<|en|>", "<|transcribe|>", "<|notimestamps|>")]
        assert predictor.target_tokenizer.decode(target[3:]) == f" {examples[i].target}"
        assert target[-1] == predictor.model.config.end_id
    batches = eval_batches(data, shapes)
    assert batches.truncated == 1
    row = {int(i): samples for batch in batches for i, samples in zip(batch.example_ids, batch.source.samples)}[7]
    np.testing.assert_array_equal(row, read_sound(examples[7].source)[: 160 * WINDOW])


def test_the_stream_goes_on_where_it_was_and_hosts_share_it(table, predictor):
    """After a state is set the same batches, also by way of the thread that reads ahead; two hosts have the rows of one."""
    examples, batching = Recordings(str(table)).load("train"), Batching(tokens=1200, max_source_len=WINDOW, buckets=1)

    def stream(host=(0, 1)):
        data = heard(examples, predictor)
        return train_batches(data, batching, data.shapes(batching, 2), seed=1, host=host)

    with Prefetch(stream(), lambda batch: batch, 2) as ahead:
        for _ in range(3):
            next(ahead)
        state = ahead.get_state()
        wanted = [next(ahead) for _ in range(12)]
    again = stream()
    again.set_state(state)
    for batch in wanted:
        chex.assert_trees_all_equal(next(again), batch)
    hosts = [stream((i, 2)) for i in range(2)]
    for host in hosts:
        host.set_state(state)
    for batch in wanted[:3]:
        halves = [next(host) for host in hosts]
        chex.assert_trees_all_equal(jax.tree.map(lambda *x: np.concatenate(x), *halves), batch)


def test_targets_are_what_the_published_models_say(predictor):
    """After <|startoftranscript|>, which the decoder reads first; of English alone as the tokenizer's own file has it."""
    names, text = predictor.target_tokenizer.names, "Hello world"
    said = lambda p, *told: [names[i] for i in p.targets(*told).encode_batch([text])[0]]  # noqa: E731
    assert said(predictor, "de", "translate")[:3] == ["<|de|>", "<|translate|>", "<|notimestamps|>"]
    whole = predictor.targets("en", "transcribe").encode_batch([f" {text}\n"])[0]
    assert whole[3:] == predictor.target_tokenizer.encode(f" {text}")[2:]
    english = zoo.load(GOLDEN.with_name("whisper_en"))
    for language in ("", "en"):
        ours = english.targets(language, "transcribe").encode_batch([text, ""])
        assert ours[0] == english.target_tokenizer.encode(f" {text}")[1:]
        assert ours[0][0] == english.controls.unstamped
    for p, told, message in (
        (predictor, ("", "transcribe"), "set data.language to one of en, de, fr"),
        (predictor, ("xx", "transcribe"), "'xx', which is not one of en, de, fr"),
        (english, ("de", "transcribe"), "English alone"),
        (english, ("en", "translate"), "English alone"),
    ):
        with pytest.raises(zoo.UserError, match=message):
            p.targets(*told)


def test_languages_without_spaces_begin_without_one(predictor):
    size = predictor.model.config.target_vocab_size
    text = predictor.target_tokenizer.files["tokenizer.json"].decode().replace("<|fr|>", "<|ja|>")
    tokenizer = type(predictor.target_tokenizer)({"tokenizer.json": text.encode()}, "target", size, 290)
    japanese = dataclasses.replace(predictor, target_tokenizer=tokenizer)
    text = lambda language, task: tokenizer.text(japanese.targets(language, task).encode_batch(["Hello"])[0])  # noqa: E731
    assert (text("ja", "transcribe"), text("ja", "translate"), text("de", "transcribe")) == ("Hello", " Hello", " Hello")


def test_a_model_hears_samples_as_it_does_frames(predictor):
    """Frames that are made inside are those of the predictor; a row of padding is not heard."""
    sounds = [speech(6000 + i, 1.0 + i)[0] for i in range(2)]
    samples = np.stack([*(np.pad(sound, (0, 160 * WINDOW - len(sound))) for sound in sounds), np.zeros(160 * WINDOW)])
    mask = np.repeat([[True], [True], [False]], WINDOW, 1)
    frames = np.stack([*(frames_of(sound, 80, WINDOW) for sound in sounds), np.zeros((WINDOW, 80), np.float32)])
    encode = jax.jit(lambda source: predictor.model.apply({"params": predictor.params}, source, method="encode"))
    chex.assert_trees_all_close(
        encode(Sound(samples.astype(np.float32), mask)).keys, encode(Frames(frames, mask)).keys, atol=2e-4
    )


def test_frames_are_made_where_their_rows_are():
    """On a mesh: no device gets the sound of another, as it would for XLA's own FFT of a sharded batch."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sounds = np.stack([speech(i, 0.3)[0] for i in range(8)])
    rows = jax.device_put(sounds, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

    @jax.jit
    def frames(samples_BN):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return by_rows(lambda x: log_mel(x, 80), samples_BN)

    assert "all-gather" not in frames.lower(rows).compile().as_text()
    found = frames(rows)
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(found, [frames_of(sound, 80) for sound in sounds], atol=1e-4)


def command(table: Path, workdir: Path, steps: int, *more: str) -> list[str]:
    paths = ["--workdir", str(workdir), "--init-from", str(GOLDEN), "--data.train", str(table), "--data.language", "en"]
    sizes = ["--batching.tokens", "3600", "--batching.buckets", "1", "--training.eval-examples", "2"]
    rates = ["--optimizer.learning-rate", "2e-3", "--optimizer.warmup-steps", "0", "--optimizer.schedule", "constant"]
    watch = ["--training.eval-every", "10", "--training.trace", "--training.log-every", "5", "--parallel.devices", "2"]
    return [CONFIG, *paths, *sizes, *rates, *watch, "--training.steps", str(steps), *more]


@pytest.fixture(scope="module")
def programs():
    """All runs of this module are of one experiment: what the first compiles serves the others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compile_train", "compile_eval"):
            patch.setattr(Pmap, name, once(getattr(Pmap, name)))
        yield


def once(compile_step):
    compiled = []

    def compile_once(self, step):
        compiled.extend([] if compiled else [compile_step(self, step)])
        return compiled[0]

    return compile_once


@pytest.fixture(scope="module")
def workdir(table, programs, tmp_path_factory) -> Path:
    """Twenty steps in one go."""
    path = tmp_path_factory.mktemp("run") / "whole"
    assert train(command(table, path, 20)) == 0
    return path


def trace(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]
    return [{**line, "loss": float.fromhex(line["loss"])} for line in lines]


def test_it_learns_from_the_published_model_on(workdir, table, predictor):
    """The first loss is the published model's, by frames of the predictor; the last ones are a part of it."""
    lines, examples = trace(workdir), Recordings(str(table)).load("train")
    chosen = [examples[i] for i in lines[0]["example_ids"]]
    ids = predictor.targets("en", "transcribe").encode_batch([example.target for example in chosen])
    target = pad_tokens(ids)
    frames = np.stack([frames_of(read_sound(example.source), 80, WINDOW) for example in chosen])
    logits = jax.jit(lambda source, ids: predictor.model.apply({"params": predictor.params}, source, Tokens(ids, None)).logits)
    first = divide(token_metrics(logits(Frames(frames, np.ones(frames.shape[:2], bool)), target.ids), target))["loss"]
    assert lines[0]["loss"] == pytest.approx(first, abs=1e-4)
    assert shift_right(target.ids, predictor.model.config.start_id)[0, 0] == predictor.controls.start
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.6 * first


def test_the_score_is_that_of_what_the_loaded_run_says(workdir, table, predictor):
    """Told the language that it has learned, without being asked to."""
    tuned, examples = zoo.load(workdir), Recordings(str(table)).load("test")
    paths = [example.source for example in examples]
    said = tuned.predict(paths)
    result = json.loads((workdir / "result.json").read_text())
    scores = tasks.speech(said, [example.references for example in examples])
    assert {f"test/{name}": value for name, value in scores.items()}.items() <= result.items()
    assert said != predictor.predict(paths, language="en")
    assert {x.language for x in tuned.predictions([speech(3, 1.5, "de")[0]])} == {"en"}


def test_a_run_goes_on(workdir, table, predictor, tmp_path, capsys):
    path = shutil.copytree(workdir, tmp_path / "resumed")
    shutil.rmtree(path / "checkpoints" / "20")
    assert train(command(table, path, 20)) == 0
    assert "continuing at step 10 of 20" in capsys.readouterr().out
    assert trace(path) == trace(workdir)
    chex.assert_trees_all_equal(zoo.load(path).params, zoo.load(workdir).params)


def test_the_export_is_a_whisper_that_knows_its_language(workdir, tmp_path):
    assert use(["export", str(workdir), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    again, tuned = zoo.load(tmp_path / "out"), zoo.load(workdir)
    chex.assert_trees_all_equal(again.params, tuned.params)
    assert again.decoding == tuned.decoding
    generation, published = (json.loads((d / "generation_config.json").read_text()) for d in (tmp_path / "out", GOLDEN))
    assert published.pop("forced_decoder_ids")
    assert generation == {**published, "language": "<|en|>", "task": "transcribe"}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        same = json.loads((tmp_path / "out" / name).read_text()), json.loads((GOLDEN / name).read_text())
        assert same[0] == same[1], name
    published = flatten_params(zoo.load(GOLDEN).params)
    still = [path for path, x in flatten_params(again.params).items() if np.array_equal(x, published[path])]
    assert still == ["encoder_positions/embedding"]


def test_bad_files_are_one_sentence_with_a_line(table, predictor, tmp_path, capsys):
    broken, rows = tmp_path / "broken.tsv", []
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", speech(i, 1.0)[0], RATE)
        rows.append(f"{i}.wav\tHallo\n")
    broken.write_text("".join(rows) + "\nnone.wav\tHallo\n")
    assert train(command(broken, tmp_path / "run", 2)) == 2
    said = capsys.readouterr().err
    assert f"broken.tsv line 10: there is no sound file {tmp_path / 'none.wav'}" in said
    assert said.count("\n") == 1

    broken.write_text("".join(rows))
    (tmp_path / "5.wav").write_text("no sound")
    examples = Recordings(str(broken), test=str(broken)).load("test")
    with pytest.raises(zoo.UserError, match=r"broken\.tsv line 6: .*5\.wav is not a readable sound file"):
        heard(examples, predictor).lengths(np.arange(8))
    content = (tmp_path / "6.wav").read_bytes()
    soundfile.write(tmp_path / "5.flac", speech(5, 2.0)[0], RATE)
    (tmp_path / "5.wav").write_bytes(content)
    (tmp_path / "3.flac").write_bytes((tmp_path / "5.flac").read_bytes()[:4000])
    soundfile.write(tmp_path / "4.wav", np.array([0.0, np.nan] * 999, np.float32), RATE, subtype="FLOAT")
    broken.write_text("3.flac\tHallo\n4.wav\tHallo\n")
    data = heard(Recordings(str(broken), test=str(broken)).load("test"), predictor)
    for row, message in ((0, r"line 1: .*3\.flac is not a readable"), (1, r"line 2: .*not finite")):
        with pytest.raises(zoo.UserError, match=message):
            data.padded(np.array([row]), np.array([0]), (1, WINDOW, 8))


def test_what_sound_is_not_for_is_refused():
    sound = Experiment(whisper.WhisperConfig(), Recordings(), init_from="somewhere", task="speech")
    check(sound)
    for changes, message in (
        ({"data": Files()}, "data is Files, text, but Whisper reads sound"),
        ({"model": MarianConfig()}, "data is Recordings, sound, but Marian reads text"),
        ({"batching": Batching(pack=True)}, "without corruption and batching.pack"),
        ({"corruption": "infill"}, "without corruption and batching.pack"),
        ({"init_embeddings": "words.txt"}, "init_embeddings"),
    ):
        with pytest.raises(zoo.UserError, match=message):
            check(dataclasses.replace(sound, **changes))


def test_word_error_rates():
    """Against what is counted by hand; a corpus's rate is that of its sum."""
    references = [["the cat sat"], ["Dogs bark, loudly!"], ["ein Bär"]]
    scores = tasks.speech(["the cat", "dogs bark loudly now", "ein  Bär"], references)
    assert scores["wer"] == pytest.approx(100 * (1 + 4) / 8)
    assert scores["wer_of_words"] == pytest.approx(100 * (1 + 1) / 8)
    assert scores["cer"] == pytest.approx(100 * (4 + 6) / (11 + 18 + 7))
