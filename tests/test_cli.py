"""The commands as a person types them: a whole run on a small file, resuming it, using and exporting it, and bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import zoo
from train.__main__ import main as train
from train.workdir import LOCK, open_workdir
from zoo.__main__ import main as use
from zoo.core import pad_tokens
from zoo.generate import minimum_bayes_risk, score
from zoo.text import Tokenizer

pytestmark = pytest.mark.xdist_group("cli")  # one worker: the run that most tests share is made once

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "transformer_tsv.py")
TINY = shlex.split(
    "--model.d-model 16 --model.d-ff 32 --model.num-heads 2 --model.num-layers 1 --tokenizers.source characters "
    "--tokenizers.target characters --batching.tokens 256 --batching.max-source-len 16 --batching.max-target-len 16 "
    "--batching.buckets 2 --decoding.max-len 12 --decoding.beams 2 --training.eval-examples 4 --training.log-every 2 "
    "--training.eval-every 4 --optimizer.warmup-steps 2 --parallel.devices 2"
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A TSV of words and their reverse."""
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("abcde"), rng.integers(2, 8))) for _ in range(300)}
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in sorted(words)), encoding="utf-8")
    return path


def command(pairs: Path, workdir: Path, steps: int, *more: str) -> list[str]:
    return [CONFIG, "--workdir", str(workdir), "--data.train", str(pairs), "--training.steps", str(steps), *TINY, *more]


@pytest.fixture(scope="module")
def workdir(pairs, tmp_path_factory) -> Path:
    """A run of 8 steps in one go."""
    path = tmp_path_factory.mktemp("run") / "whole"
    assert train(command(pairs, path, 8)) == 0
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def timeless(path: Path) -> list[dict]:
    """What is logged but speeds."""
    timed = re.compile("per_second|waiting|utilisation")
    return [{name: value for name, value in line.items() if not timed.search(name)} for line in lines(path)]


def test_a_run_leaves_what_it_promises(workdir, pairs):
    result = json.loads((workdir / "result.json").read_text())
    assert {"test/cer", "test/error", "test/texts", "wall_seconds", "command", "checkpoint", "parameters"} <= set(result)
    assert result["steps"] == 8
    assert result["command"].startswith(f"python -m train {CONFIG} --workdir {workdir}")
    logged = [line for line in lines(workdir) if "train/loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]
    assert {"train/tokens_per_second", "train/learning_rate", "train/gradient_norm"} <= set(logged[0])
    assert [line["step"] for line in lines(workdir) if "validation/nll" in line] == [4, 8]
    assert (workdir / "attention.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (workdir / "attention" / "step_0000008.png").exists()
    assert any((workdir / "tensorboard").iterdir())
    for step in (workdir / "checkpoints").glob("[0-9]*"):
        assert {path.name for path in step.iterdir()} >= {"params", "optimizer", "data", "model", "experiment", "metrics"}


def test_resuming_gives_the_same_numbers(workdir, pairs, tmp_path, capsys):
    """4 steps, a line logged past them by a run that died, then the rest: parameters and losses of the run in one go."""
    path = tmp_path / "halves"
    assert train(command(pairs, path, 4)) == 0
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/loss": 99}\n{"step": 7, "tr')
    assert train(command(pairs, path, 8)) == 0
    assert "continuing at step 4 of 8" in capsys.readouterr().out
    assert timeless(path) == timeless(workdir)
    for step in ("4", "8"):
        whole, halves = (zoo.load(run / "checkpoints" / step).params for run in (workdir, path))
        chex.assert_trees_all_equal(whole, halves)
    before = (path / "result.json").read_text()
    assert train(command(pairs, path, 8)) == 0
    assert "is done" in capsys.readouterr().out
    assert (path / "result.json").read_text() == before


def test_resuming_on_a_mesh_of_other_devices(workdir, pairs, tmp_path):
    """A run of pmap on 2 devices goes on with fsdp x model on 4."""
    path = tmp_path / "moved"
    shutil.copytree(workdir, path)
    more = ("--parallel.kind", "mesh", "--parallel.fsdp", "2", "--parallel.model", "2", "--parallel.devices", "4")
    assert train(command(pairs, path, 10, *more)) == 0
    assert json.loads((path / "result.json").read_text())["devices"].startswith("4 x")
    assert lines(path)[-1]["step"] == 10


def test_load_predict_and_export(workdir, tmp_path, capsys):
    predictor = zoo.load(workdir)
    texts = ["abc", "", "edcba" * 9, "ab"]
    expected = predictor.predict(texts)
    assert len(expected) == 4
    assert [predictor.predict([text])[0] for text in texts] == expected, "a text's output depends on its neighbours"
    assert predictor.predict(texts, beams=1, max_len=3) == [text[:3] for text in predictor.predict(texts, beams=1)]

    assert use(["export", str(workdir), str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "source.json",
        "target.json",
    }
    exported = zoo.load(tmp_path / "out")
    chex.assert_trees_all_equal(exported.params, jax.device_get(predictor.params))
    assert exported.predict(texts) == expected
    capsys.readouterr()
    assert use(["predict", str(tmp_path / "out"), *texts]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert use(["predict", str(tmp_path / "out"), "--json", "abc"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == "abc"
    assert found["prediction"] == expected[0]
    assert found["score"] < 0

    # A second export refuses to overwrite the first.
    assert use(["export", str(workdir), str(tmp_path / "out")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert zoo.load(tmp_path / "out").predict(texts) == expected


def test_predicting_in_every_way(workdir, capsys):
    """Each setting of Decoding reaches the search: on the command line, and in Python."""
    # Hardly trained, the model would end at once: min_len makes it speak.
    predictor = dataclasses.replace(zoo.load(workdir), decoding=zoo.Decoding(min_len=5, max_len=9))
    texts = ["abc", "edcba"]
    greedy = predictor.predict(texts)
    assert all(greedy)

    several = predictor.predictions(texts, beams=4, n_best=3)
    assert all(len(p.n_best) == 3 and p.n_best[0] == (p.text, p.score) for p in several)
    assert all(a[1] >= b[1] for p in several for a, b in itertools.pairwise(p.n_best))
    numbers = ["--min-len", "5", "--max-len", "9"]
    assert use(["predict", str(workdir), *texts, "--beams", "4", "--n-best", "3", *numbers]) == 0
    assert capsys.readouterr().out.splitlines() == [text for p in several for text, _ in p.n_best]

    options = {"sample": True, "n_best": 4, "seed": 5, "top_p": 0.95}
    drawn = predictor.predictions(texts, **options)
    assert len({text for text, _ in drawn[0].n_best}) > 1
    # A text's draws hang on its place in the list and on the seed, not on what is beside it.
    assert [text for text, _ in predictor.predictions(texts[:1], **options)[0].n_best] == [t for t, _ in drawn[0].n_best]
    assert predictor.predictions(texts, **{**options, "seed": 6})[0].n_best != drawn[0].n_best
    risk = predictor.predictions(texts, **options, risk="chrf")[0]
    assert risk.text == minimum_bayes_risk([text for text, _ in drawn[0].n_best]).best

    assert use(["predict", str(workdir), *texts, "--stream", "--beams", "1", *numbers]) == 0
    assert capsys.readouterr().out.splitlines() == greedy
    pieces = list(predictor.stream("edcba", sample=True, seed=3))
    assert len(pieces) > 1
    assert "".join(pieces) == predictor.predict(["edcba"], sample=True, seed=3)[0]

    source, target = (pad_tokens(predictor.source_tokenizer.encode_batch(x)) for x in (texts, ["ddd", "e"]))
    expected = score(predictor.model, predictor.params, source, target)[0].tolist()
    assert predictor.score(texts, ["ddd", "e"]) == pytest.approx(expected, abs=1e-4)
    assert predictor.predict(texts, repetition_penalty=9.0) != greedy
    assert all(len(set(text)) == len(text) for text in predictor.predict(texts, no_repeat_ngram=1))
    lengths = [len(p.log_probs) for p in predictor.predictions(["abc", "edcbaedcba"], max_len_ratio=0.5)]
    assert lengths[0] == 2
    assert lengths[1] >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 2, "sample": True}, "sample is set and beams is 2"),
        ({"beams": 1, "n_best": 2}, "n_best is 2 but beams is 1"),
        ({"beams": 1, "top_k": 2}, "top_k is 2 but sample is off"),
        ({"beams": 1, "risk": "chrf"}, "chooses among several"),
        ({"beams": 1, "sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ({"n_best": 0}, "n_best is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(workdir, options, message):
    with pytest.raises(zoo.UserError, match=message):
        zoo.load(workdir).predict(["abc"], **options)


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment}
    return subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, cwd=ROOT, env=environment)


def test_an_export_is_read_without_orbax_and_lines_come_from_standard_input(workdir, tmp_path):
    zoo.save(zoo.load(workdir), tmp_path / "out")
    code = (
        "import sys; from zoo.__main__ import main; code = main(['predict', sys.argv[1]]); "
        "loaded = {name.split('.')[0] for name in sys.modules}; assert not loaded & {'orbax', 'optax', 'tensorflow'}, loaded; "
        "sys.exit(code)"
    )
    found = run("-c", code, str(tmp_path / "out"), stdin="abc\n\nédc\r\n".encode())
    assert found.returncode == 0, found.stderr.decode()
    assert found.stdout.decode().splitlines() == zoo.load(workdir).predict(["abc", "", "édc"])


def test_standard_input_that_is_not_utf8(workdir, capsys, monkeypatch):
    class Stdin:
        buffer = iter([b"abc\n", b"\xff\n"])
        isatty = staticmethod(lambda: True)

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert use(["predict", str(workdir)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "line 2 of standard input is not UTF-8" in captured.err


def test_scores_are_log_probabilities(workdir):
    """A greedy prediction's score is what the model gives that output; attention's rows are distributions."""
    predictor = zoo.load(workdir)
    prediction = predictor.predictions(["abcde"], attention=True, beams=1)[0]
    source = pad_tokens([predictor.source_tokenizer.encode("abcde")])
    ids = predictor.target_tokenizer.encode(prediction.text)
    ids = ids if len(prediction.target_pieces) == len(ids) else ids[:-1]  # one cut at max_len has no end token
    sums, _ = score(predictor.model, predictor.params, source, pad_tokens([ids]))
    assert prediction.score == pytest.approx(float(sums[0]), abs=1e-4)
    for weights in prediction.attention.values():
        assert weights.shape == (2, len(prediction.target_pieces), len(prediction.source_pieces))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def one_error(capsys, code: int, expected: int = 2) -> str:
    """The one sentence of a command that ended with this exit code and said nothing else on standard error."""
    captured = capsys.readouterr()
    assert code == expected, captured
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model.num-layer", "3"], "did you mean --model.num-layers?"),
        (["--trainig.steps", "3"], "did you mean --training.steps?"),
        (["--model.num-layers", "three"], "--model.num-layers"),
        (["--model.norm", "middle"], "'post', 'pre'"),
        (["--training.steps", "0"], "training.steps is 0: it must be at least 1"),
        (["--model.d-model", "-16"], "model.d_model is -16"),
        (["--model.num-heads", "3"], "a multiple of num_heads"),
        (["--model.dropout", "1.5"], "model.dropout is 1.5: it must be 0 to 1"),
        (["--optimizer.learning-rate", "nan"], "optimizer.learning_rate is nan"),
        (["--optimizer.rate-rules", "nothing.*", "0", ".*", "1"], "'nothing.*', which matches no parameter"),
        (["--optimizer.ema", "1.0"], "an average that never moves"),
        (["--optimizer.accumulate", "3"], "training.steps is 2, fewer batches than optimizer.accumulate wants"),
        (["--training.max-skipped", "0"], "training.max_skipped is 0: it must be at least 1"),
        (["--training.watchdog", "-1"], "training.watchdog is -1.0: it must be at least 0"),
        (["--parallel.devices", "99"], "parallel.devices is 99"),
        (["--tokenizers.target", "words"], "tokenizers.shared wants one kind"),
        (["--tokenizers.no-shared"], "share_embeddings"),
        (["--data.train", "no/such/file.tsv"], "no/such/file.tsv"),
        (["--data.test", "no/such/test.tsv"], "no/such/test.tsv"),
        (["stray"], "stray"),
    ],
)
def test_bad_options(pairs, tmp_path, capsys, more, expected):
    assert expected in one_error(capsys, train(command(pairs, tmp_path / "run", 2, *more)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"a\tb\nlonely\n", ":2"),
        (b"a\tb\n\xff\xfe\tb\n", ":2"),
    ],
    ids=["empty", "one column", "not UTF-8"],
)
def test_bad_training_files(tmp_path, capsys, content, expected):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    message = one_error(capsys, train(command(path, tmp_path / "run", 2)))
    assert "bad.tsv" in message
    assert expected in message.replace("line ", ":")


def test_bad_config_files(tmp_path, capsys):
    missing = one_error(capsys, train([str(ROOT / "configs" / "quickstrat.py"), "--workdir", "x"]))
    assert "did you mean" in missing
    assert "quickstart.py" in missing
    for text, expected in (
        ("(this is no Python", "cannot be used, SyntaxError"),
        ("x = 1", "sets no variable named experiment"),
        ("experiment = 1", "must be a train.experiment.Experiment"),
        ("from train.experiment import Training\nexperiment = Training(stepz=1)", "stepz"),
    ):
        path = tmp_path / "config.py"
        path.write_text(text)
        assert expected in one_error(capsys, train([str(path), "--workdir", "x"]))
    assert "--workdir is missing" in one_error(capsys, train([CONFIG]))
    assert "the config file comes first" in one_error(capsys, train(["--workdir", "x", CONFIG]))


def test_a_workdir_of_something_else(workdir, pairs, tmp_path, capsys):
    """Another model, another data set or stray files are refused before anything is touched."""
    before = sorted(path.stat().st_mtime_ns for path in workdir.rglob("*"))
    message = one_error(capsys, train(command(pairs, workdir, 8, "--model.num-layers", "2")))
    assert "model.num_layers was 1 and is 2 now" in message
    message = one_error(capsys, train(command(pairs, workdir, 8, "--training.label-smoothing", "0.2")))
    assert "training.label_smoothing was 0.1 and is 0.2 now" in message
    assert sorted(path.stat().st_mtime_ns for path in workdir.rglob("*")) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no training run" in one_error(capsys, train(command(pairs, tmp_path, 2)))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    file = tmp_path / "notes.txt"
    assert "cannot be written" in one_error(capsys, train(command(pairs, file, 2)))


def test_directories_that_are_no_model(workdir, tmp_path, capsys):
    assert "there is no directory" in one_error(capsys, use(["predict", str(tmp_path / "none"), "x"]))
    assert "holds no model" in one_error(capsys, use(["predict", str(tmp_path), "x"]))
    zoo.save(zoo.load(workdir), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())

    def broken(expected: str, **changes):
        changed = {**config["model"], **{k: v for k, v in changes.items() if k != "fields"}}
        changed["fields"] = {**config["model"]["fields"], **changes.get("fields", {})}
        (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "model": changed}))
        assert expected in one_error(capsys, use(["predict", str(tmp_path / "out"), "x"]))

    broken("which is not one of", variant="os")
    broken("did you mean transformer?", variant="transfomer")
    broken("which is not one of TransformerConfig", config="Path")
    broken("did you mean d_model?", fields={"d_mode": 3})
    broken("does not fit", fields={"d_model": "16"})
    broken("has the shape", fields={"d_ff": 64})
    broken("is of another model: missing", fields={"num_layers": 2})
    (tmp_path / "out" / "config.json").write_text("{")
    assert "not readable JSON" in one_error(capsys, use(["predict", str(tmp_path / "out"), "x"]))
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    tokenizer = tmp_path / "out" / "source.json"
    good = tokenizer.read_bytes()
    Tokenizer.train("characters", ["xyz"]).save(tokenizer)
    assert "the source vocabulary does not fit" in one_error(capsys, use(["predict", str(tmp_path / "out"), "x"]))
    tokenizer.write_bytes(b"{}")
    assert "source.json is not a tokenizer of seq2seq-zoo" in one_error(capsys, use(["predict", str(tmp_path / "out"), "x"]))
    tokenizer.write_bytes(good)
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is damaged" in one_error(capsys, use(["predict", str(tmp_path / "out"), "x"]))


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("1 on elsewhere", file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_one_command_at_a_time_trains_in_a_workdir(pairs, tmp_path, capsys):
    """The lock is gone with the process that held it, even a killed one; what it leaves is no obstacle."""
    path, failing = tmp_path / "run", ("--data.test", "no/such/test.tsv")
    path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"held\n"
        said = one_error(capsys, train(command(pairs, path, 2, *failing)))
        assert f"another command trains in {path}, process 1 on elsewhere: wait until it ends" in said
        child.kill()
    assert "no/such/test.tsv" in one_error(capsys, train(command(pairs, path, 2, *failing)))
    with open_workdir(json.loads((path / "experiment.json").read_text()), path):
        said = one_error(capsys, train(command(pairs, path, 2, *failing)))
    assert f"process {os.getpid()} on " in said
    assert "no/such/test.tsv" in one_error(capsys, train(command(pairs, path, 2, *failing)))


def test_predict_explains_its_arguments(workdir):
    predictor = zoo.load(workdir)
    with pytest.raises(zoo.UserError, match=r"write \[text\]"):
        predictor.predict("abc")
    with pytest.raises(zoo.UserError, match="no option 'beam'"):
        predictor.predict(["abc"], beam=4)
    assert predictor.predict([]) == []


def test_no_disk_space_is_one_sentence(pairs, tmp_path, capsys, monkeypatch):
    import errno

    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("train.report.Recorder.write", full)
    assert "no disk space is left (metrics.jsonl)" in one_error(capsys, train(command(pairs, tmp_path / "run", 2)), 3)


def test_help_and_list(capsys):
    assert train(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        train([CONFIG, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--workdir", "--model.d-model", "width D", "--data.train", "--optimizer.rate-rules", "--decoding.beams"):
        assert text in shown
    assert use(["list"]) == 0
    table = capsys.readouterr().out
    for text in ("Bahdanau et al. 2015", "63,082,496", "214,245,376", "384,112,000"):
        assert text in table


def test_the_bar_of_a_terminal(capsys):
    """On a terminal there is a progress bar with loss, speed and time left."""
    import io

    from rich.console import Console

    from train.view import View

    screen = io.StringIO()
    view = View(10, Console(file=screen, force_terminal=True, width=140))
    view.start(0)
    view.step(5, {"train/loss": 1.2345, "train/tokens_per_second": 6789.0}, 12.0)
    view.stop()
    text = screen.getvalue()
    assert "1.234" in text or "1.235" in text
    assert "6,789 tokens/s" in text
    assert "5/10" in text
    assert "left" in text
