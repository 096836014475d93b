"""``python -m train.compare`` on two tiny models: stopped twice on the way, then whole; and the parts that it is made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from train import loop
from train.compare import charts, flow, measures, page, published, runs, speed, table
from train.compare.__main__ import family, main
from train.compare.charts import Chart, Series
from train.compare.table import Curve
from train.survive import INTERRUPTED, Stopped
from train.tasks import TASKS
from zoo import rnn, transformer
from zoo.core import UserError, flatten_params, pad_tokens, shift_right
from zoo.page.attention import SCALE

pytestmark = pytest.mark.xdist_group("compare")  # one worker: what most tests look at is made once

ROOT = Path(__file__).parent.parent
CONFIG = """from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from train.parallel import Parallel
from zoo.decoding import Decoding
from zoo.{variant} import {model}
experiment = Experiment(
    model={model}({sizes}),
    data=Files(train={data!r}),
    tokenizers=Tokenizers("characters", "words"),
    batching=Batching(tokens=64, max_source_len=8, max_target_len=8, buckets=1),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
    training=Training(eval_examples=8, samples=0, tensorboard=False),
    decoding=Decoding(max_len=8, max_source_len=8),
    parallel=Parallel(devices=1),
    task="pronunciation",
)
"""
EVIL = "elman<script>"  # a name that a page must not take for markup
TEXT = "<script>\"'&"
STEPS, SEEDS = 4, 2
OPTIONS = [
    "--seeds",
    str(SEEDS),
    "--steps",
    str(STEPS),
    "--lengths",
    "4",
    "6",
    "--texts",
    TEXT,
    "abba",
    "--training.eval-every",
    "2",
]
PARTS = 2 * (2 * SEEDS + len(measures.MEASURES))


def progress_that_stops(at: int):
    """``measures.progress`` of a command that a signal ends when this part begins."""

    def progress(parts: int):
        assert parts == PARTS
        left = iter(range(at - 1))

        def say(what: str) -> None:
            if next(left, None) is None:
                raise Stopped(INTERRUPTED, f"stopped before {what}")

        return say

    return progress


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("configs")
    rng = np.random.default_rng(0)
    words = sorted({"".join(rng.choice(list('ab<&"'), rng.integers(2, 8))) for _ in range(200)})
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{' '.join(word[::-1])}\n" for word in words).replace('"', "c"))
    models = {
        "transformer": (
            "transformer",
            "TransformerConfig",
            "d_model=8, d_ff=8, num_heads=2, num_layers=1, share_embeddings='none'",
        ),
        EVIL: ("rnn", "ElmanConfig", "embed_dim=8, hidden_dim=8"),
    }
    for name, (variant, model, sizes) in models.items():
        text = CONFIG.format(variant=variant, model=model, sizes=sizes, data=str(folder / "pairs.tsv"))
        (folder / f"{name}.py").write_text(text)
    return [str(folder / f"{name}.py") for name in models]


@pytest.fixture(scope="module")
def made(configs, tmp_path_factory) -> dict:
    """The report's directory, after a command stopped behind the first run, one amid the measures, and one to the end."""
    workdir, trained, measured = tmp_path_factory.mktemp("compared") / "all", [], []
    with pytest.MonkeyPatch.context() as patch:
        whole, keep = loop.run, measures.kept
        patch.setattr(loop, "run", lambda config, path, command: (trained.append(path.name), whole(config, path, command)))

        def kept(settings, run, part, depends, compute):
            return keep(settings, run, part, depends, lambda: (measured.append((run.directory.name, part)), compute())[1])

        patch.setattr(measures, "kept", kept)
        for part in (2, PARTS - 3):
            with patch.context() as stop:
                stop.setattr(measures, "progress", progress_that_stops(part))
                assert main([*configs, "--workdir", str(workdir), *OPTIONS]) == INTERRUPTED
            assert not (workdir / "report.html").exists()
        assert main([*configs, "--workdir", str(workdir), *OPTIONS]) == 0
    said = json.loads((workdir / "report.json").read_text())
    return {"workdir": workdir, "said": said, "trained": trained, "measured": measured}


def test_nothing_is_done_twice(made):
    names = [f"{name}-{seed}" for name in (EVIL, "transformer") for seed in range(SEEDS)]
    assert sorted(made["trained"]) == sorted(names)
    parts = [(f"{name}-0", part) for name in (EVIL, "transformer") for part in measures.MEASURES]
    assert sorted(made["measured"]) == sorted([*parts, *((name, "lengths") for name in names)])


def files(workdir: Path) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in ("report.html", "report.md", "report.json")}


def test_the_same_command_again_only_writes_the_same_report(made, configs, monkeypatch):
    monkeypatch.setattr(loop, "run", None)
    monkeypatch.setattr(zoo, "load", None)
    before = files(made["workdir"])
    assert main([*configs, "--workdir", str(made["workdir"]), *OPTIONS]) == 0
    assert files(made["workdir"]) == before


def timeless(tree):
    """The report without what a clock or a place says."""
    if isinstance(tree, dict):
        timed = re.compile("seconds|per_second|^(speed|decoding|command|checkpoint)$")
        return {name: timeless(value) for name, value in tree.items() if not timed.search(name)}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def without_times(said: dict) -> dict:
    curves = {
        name: [{kind: [[p[0], *p[2:]] for p in points] for kind, points in one.items()} for one in each]
        for name, each in said["curves"].items()
    }
    return timeless(said) | {"curves": curves}


def test_a_run_that_is_lost_is_made_again_with_the_same_numbers(made, configs, tmp_path):
    workdir = shutil.copytree(made["workdir"], tmp_path / "again")
    shutil.rmtree(workdir / "runs" / "transformer-1")
    assert main([*configs, "--workdir", str(workdir), *OPTIONS]) == 0
    assert without_times(json.loads((workdir / "report.json").read_text())) == without_times(made["said"])


def test_what_is_kept_depends_on_its_key(tmp_path):
    path = tmp_path / "folder" / "kept.json"
    assert runs.cached(path, {"a": (1,)}, lambda: [1.5, float("inf")]) == [1.5, None]
    assert runs.cached(path, {"a": (1,)}, None) == [1.5, None]
    assert runs.cached(path, {"a": (2,)}, lambda: "new") == "new"
    assert json.loads(path.read_text()) == {"key": {"a": [2]}, "value": "new"}


def test_other_options_want_another_directory(made, configs, capsys):
    assert main([*configs, "--workdir", str(made["workdir"]), *OPTIONS, "--decoding.beams", "2"]) == 2
    assert "decoding.beams 1, which is 2 now" in capsys.readouterr().err


def test_the_numbers_are_those_of_the_runs(made):
    said, task = made["said"], TASKS["pronunciation"]
    assert [row["config"] for row in said["table"]] == [EVIL, "transformer"]  # by year
    for row in said["table"]:
        scores, losses = [], []
        for seed in range(SEEDS):
            directory = made["workdir"] / "runs" / f"{row['config']}-{seed}"
            predictor, result = zoo.load(directory), json.loads((directory / "result.json").read_text())
            assert result["steps"] == STEPS
            assert row["parameters"] == sum(x.size for x in jax.tree.leaves(predictor.params))
            data = runs.read_config(result["command"].split()[3].strip("'")).data.load("test")
            scores.append(task.score(predictor.predictions([e.source for e in data]), [e.references for e in data]))
            lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
            losses.append(min(line["validation/nll"] for line in lines if "validation/nll" in line))
        for name in ("per", "wer"):
            values = [each[name] for each in scores]
            assert row["test"][name] == pytest.approx({"mean": np.mean(values), "low": min(values), "high": max(values)})
        assert row["best_nll"] == pytest.approx(np.mean(losses))
        assert row["tokens_per_second"] > 0
        assert row["decoding"]["outputs_per_second"] > 0
        assert row["step_bytes"] > 3 * 4 * row["parameters"]  # the parameters and Adam's two moments, at least
    assert said["warnings"], "a Transformer is larger than this network"
    assert [point["rows"] for point in said["speed"][EVIL]] == [64 // 4, 64 // 6]


def test_lengths_go_beyond_training(made):
    said = made["said"]
    longest = said["longest_source"]
    assert longest == 8
    for each in (bands for found in said["lengths"].values() for bands in found):
        assert all(band["low"] > longest - 1 for band in each if band["beyond"])
        assert max(band["high"] for band in each) >= 2 * longest
        assert all(0 <= band["scores"]["wer"] <= 100 for band in each)


def test_attention_is_that_of_the_model_that_attends(made):
    found = made["said"]["attention"]
    assert {(each["model"], each["text"]) for each in found} == {("transformer", TEXT), ("transformer", "abba")}
    predictor = zoo.load(made["workdir"] / "runs" / "transformer-0")
    for each in found:
        [prediction] = predictor.predictions([each["text"]], attention=True)
        assert each["output"] == prediction.text
        maps = {m["name"]: np.array(m["weights"]) / SCALE for m in each["maps"]}
        assert set(prediction.attention) < set(maps)
        for name, weights in prediction.attention.items():
            np.testing.assert_allclose(maps[name], weights, atol=1e-4)


def test_no_text_becomes_markup(made):
    html = (made["workdir"] / "report.html").read_text()
    assert html.count("<script") == 2  # the page's own: data and program
    assert "elman&lt;script&gt;" in html
    markdown = (made["workdir"] / "report.md").read_text()
    assert not [line for line in markdown.splitlines() if "<script" in line and not line.startswith("    ")]  # but as code
    for name in re.findall(r"\]\((plots/[^)]*)\)", markdown):
        assert (made["workdir"] / name).read_bytes()[:4] == b"\x89PNG"
    assert "elman&lt;script&gt;" in markdown


def test_the_report_works_in_a_browser(browser, made):
    page, wrong = browser.new_page(offline=True, viewport={"width": 375, "height": 800}), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((made["workdir"] / "report.html").as_uri())
    assert page.locator("figure svg[role=img]").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.locator("select[data-control=text]").select_option(label=TEXT)
    assert page.locator("td[role=gridcell]").count() > 0
    page.locator("figure[data-chart=length-per] input[data-series='1']").uncheck()
    curves = page.locator("figure[data-chart=length-per] g[data-series='1']")
    assert curves.count() == 2  # within and beyond training
    assert not any(curves.nth(i).is_visible() for i in range(2))
    page.close()
    assert not wrong


def test_a_budget_in_target_tokens(made, configs):
    workdir = made["workdir"]
    settings = runs.Settings(tuple(configs), workdir, tokens=1000)
    for member in runs.members(settings):
        steps = member.experiment.training.steps
        assert (steps - 1) * member.facts.target_tokens < 1000 <= steps * member.facts.target_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--steps", "-3"], "--steps is -3"),
        (["--seed", "4"], "choose how many with --seeds"),
        (["--lengths", "1"], "a sequence has at least 2 tokens"),
        (["--model.hiden-dim", "4"], "hiden-dim"),
        (["--hosts.kind", "given"], "a comparison runs on one host"),
    ],
)
def test_bad_input_is_one_sentence(configs, tmp_path, capsys, options, message):
    assert main([configs[1], "--workdir", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_two_configs_of_one_name(configs, tmp_path, capsys):
    assert main([configs[0], configs[0], "--workdir", str(tmp_path)]) == 2
    assert "two configs are called transformer" in capsys.readouterr().err


def test_sound_is_not_compared(tmp_path, capsys):
    assert main([str(ROOT / "configs" / "whisper_finetune.py"), "--workdir", str(tmp_path), "--data.train", "talks.tsv"]) == 2
    assert "hears sound" in capsys.readouterr().err


def test_no_config_means_the_family():
    assert len(family(ROOT / "configs")) == 6
    with pytest.raises(UserError, match="name the config files"):
        family(ROOT / "zoo")


def finished(name: str, parameters: int, steps: int = 10, **changed) -> runs.Trained:
    facts = runs.Facts(8, 100.0, [4, 8, 8])
    said = {"data": {"train": "a"}, "tokenizers": {"source": "words"}, "batching": {"tokens": 64}, **changed}
    member = runs.Member(name, f"{name}.py", None, [], facts)
    result = {"parameters": parameters, "steps": steps, "devices": "1 x cpu"}
    return runs.Trained(member, 0, Path(name), result, [], {"experiment": said})


def test_what_is_not_fair_is_said():
    assert runs.unfair([finished("a", 100), finished("b", 110)]) == []
    [said] = runs.unfair([finished("a", 100), finished("b", 111)])
    assert "Parameters differ by more than 10%: a 100, b 111" in said
    [said] = runs.unfair([finished("a", 100), finished("b", 100, steps=11)])
    assert "a saw 1,000 target tokens, b saw 1,100" in said
    [said] = runs.unfair([finished("a", 100), finished("b", 100, batching={"tokens": 32})])
    assert "batching.tokens differ" in said


def test_the_family_is_a_fair_setting():
    """Without the numbers of the vocabularies, which are the same for all: 31 letters and marks, 43 phones and marks."""
    sizes, common = {}, []
    for path in family(ROOT / "configs"):
        config = runs.read_config(path)
        model = loop.dataclasses.replace(config.model, source_vocab_size=31, target_vocab_size=43)
        sizes[path] = loop.abstract_params(model)
        common.append((config.data, config.tokenizers, config.batching, config.training, config.task))
    counts = [sum(x.size for x in jax.tree.leaves(params)) for params in sizes.values()]
    assert max(counts) <= runs.LIKE * min(counts), dict(zip(sizes, counts, strict=True))
    assert all(each == common[0] for each in common)


def test_a_curve_counts_training_alone():
    lines = [
        {"step": 2, "train/loss": 3.0, "train/steps_per_second": 1.0},
        {"step": 4, "train/loss": 2.0, "train/steps_per_second": 4.0},
        {"step": 4, "validation/nll": 1.5, "validation/per": 50.0},
        {"step": 5, "skipped_example_ids": [1]},
        {"step": 8, "train/loss": 1.0, "train/steps_per_second": 8.0},
        {"step": 8, "validation/nll": 1.2, "validation/per": 30.0},
    ]
    experiment = runs.read_config(str(ROOT / "configs" / "gru_g2p.py"))
    run = finished("a", 1)
    found = table.curve(run._replace(log=lines, member=run.member._replace(experiment=experiment)))
    assert found == Curve([[2, 2.0, 3.0], [4, 2.5, 2.0], [8, 3.0, 1.0]], [[4, 2.5, 1.5, 50.0], [8, 3.0, 1.2, 30.0]])
    assert table.seconds_to(40.0, found, higher_is_better=False) == 3.0
    assert table.seconds_to(60.0, found, higher_is_better=False) == 2.5
    assert table.seconds_to(20.0, found, higher_is_better=False) is None
    worse = Curve([], [[4, 1.0, 1.5, 45.0]])
    assert table.reached_by_all([found, worse], higher_is_better=False) == 45.0
    assert table.reached_by_all([found, worse], higher_is_better=True) == 45.0


MODELS = {
    "elman": rnn.PRESETS["elman-tiny"],
    "lstm": rnn.PRESETS["sutskever-tiny"],
    "transformer": transformer.TransformerConfig(
        32, 32, d_model=16, d_ff=16, num_heads=2, num_layers=1, share_embeddings="none"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_norms_are_those_of_the_tables_rows(name):
    """In a pair whose tokens are all different, each row of the ordinary tables is read once."""
    model = MODELS[name].build()
    source, target = pad_tokens([[9, 7, 5, 2], [12, 11, 2]]), pad_tokens([[21, 20, 2], [25, 2]])
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]
    norms = flow.gradient_norms(model, params, source, target)

    @jax.jit
    def rows(params, b, t):
        def loss(params):
            one = jax.tree.map(lambda x: jnp.asarray(x)[b][None], (source, target))
            logits_TV = model.apply({"params": params}, *one).logits[0]
            return -jax.nn.log_softmax(logits_TV)[t, one[1].ids[0, t]]

        flat = flatten_params(jax.grad(loss)(params))
        return {side: jnp.linalg.norm(flat[f"{side}_embedding/embedding"], axis=-1) for side in ("source", "target")}

    for b, lengths in enumerate([(4, 3), (3, 2)]):
        read = shift_right(target.ids)[b]
        for t in range(lengths[1]):
            found = rows(params, b, t)
            np.testing.assert_allclose(
                norms.source[t, b, : lengths[0]], found["source"][source.ids[b, : lengths[0]]], rtol=1e-4
            )
            np.testing.assert_allclose(norms.target[t, b, : t + 1], found["target"][read[: t + 1]], rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(norms.target[t, b, t + 1 :], 0)


def test_lags_count_recurrent_steps():
    norms = np.arange(8.0).reshape(2, 2, 2)
    lags, counts = np.array([[[0, 1], [0, 1]], [[1, 2], [1, 2]]]), np.ones((2, 2, 2), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "PAIRS", 2)
        assert flow.medians(norms, lags, counts) == [[0, 1.0, 2], [1, 3.5, 4], [2, 6.0, 2]]
        assert flow.medians(norms, lags, counts & (lags < 2) & (norms > 0)) == [[1, 3.5, 4]]


def test_a_model_that_cannot_read_so_far_has_no_speed(configs):
    config = runs.read_config(configs[0])
    sizes = {"source_vocab_size": 12, "target_vocab_size": 12}
    short = loop.dataclasses.replace(config.model, positions="learned", max_len=6, **sizes).build()
    found = speed.by_length(config, short, [4, 8])
    assert found[0]["tokens_per_second"] > 0
    assert found[1] == {"length": 8, "rows": 8, "tokens_per_second": None}


def test_charts_place_points_by_their_values():
    chart = Chart("n", "t", "", "x", "y", [Series('a"<', [(1, 1.0), (100, 4.0)], 0)], x_log=True, mark=(10, "here"))
    drawn = charts.svg(chart)
    left, right, bottom, top = charts.LEFT, charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM, charts.TOP
    high = round(bottom + 4.0 / (4.0 * 1.04) * (top - bottom), 1)
    assert f"L{float(right)} {high}" in drawn
    assert f'd="M{(left + right) / 2} {top}V' in drawn  # the mark, half way between 1 and 100
    assert 'a"<' not in charts.figure(chart)
    assert charts.axis([3e-7, 2e-1], 0, 1, log=True).ticks() == pytest.approx([1e-5, 1e-3, 1e-1], rel=1e-6)
    assert charts.axis([0, 10], 0, 1, log=False).ticks() == [0, 5, 10]
    assert [charts.number(x) for x in (0.5, 12_000)] == ["0.5", "12k"]
    assert charts.svg(chart._replace(series=[])) == "<p>Nothing was measured.</p>"


def test_the_mean_over_seeds_has_a_band():
    one = charts.Series("a", [(1.5, 3.0), (2.0, 6.0)], 0, [(1.5, 2.0, 4.0), (2.0, 5.0, 7.0)])
    runs_of = [[[1, 2.0], [2, 5.0]], [[2, 4.0], [2, 7.0]]]
    assert page.plots.averaged("a", 0, runs_of, 0, 1) == one


def test_published_figures_stand_beside_their_architecture():
    assert published.beside("Vaswani et al. 2017").wer == "30 to 31"
    assert published.beside("Elman 1990") is None
