"""The page of a model's attention: what is in it, and how it works in a browser where there is one (extra ``browser``)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from zoo import rnn, rnn_attention
from zoo.__main__ import main
from zoo.core import UserError
from zoo.page import attention, document, escape, script_json
from zoo.page.attention import SCALE
from zoo.text import Tokenizer

MARIAN = str(Path(__file__).parent / "golden" / "marian")
TEXT = "<b>\"'&</b>"
BEAMS = 3  # everywhere, so that one program serves all


@pytest.fixture(scope="module")
def marian() -> zoo.Predictor:
    return zoo.load(MARIAN)


def data_of(html: str) -> dict:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_weights_are_those_of_generation(marian):
    found = attention.attend(marian, "hello world", beams=BEAMS)
    [prediction] = marian.predictions(["hello world"], attention=True, beams=BEAMS)
    assert found["output"] == prediction.text
    assert found["tokens"]["source"] == prediction.source_pieces
    assert found["tokens"]["target"] == prediction.target_pieces
    assert found["tokens"]["read"][1:] == prediction.target_pieces[:-1]
    maps = {each["name"]: np.array(each["weights"]) / SCALE for each in found["maps"]}
    for name, weights in prediction.attention.items():
        np.testing.assert_allclose(maps[name], weights, atol=1e-4)
    layers = marian.model.config
    assert len(maps) == layers.encoder_layers + 2 * layers.decoder_layers
    for each in found["maps"]:
        weights, tokens = np.array(each["weights"]), found["tokens"]
        assert weights.shape[1:] == (len(tokens[each["queries"]]), len(tokens[each["keys"]])), each["name"]
        np.testing.assert_allclose(weights.sum(axis=-1) / SCALE, 1, atol=1e-4 * weights.shape[2])
        sides = (
            ("source", "source") if "encoder" in each["name"] else ("target", "source" if "cross" in each["name"] else "read")
        )
        assert (each["queries"], each["keys"]) == sides


def predictor_of(config, texts: list[str]) -> zoo.Predictor:
    tokenizer = Tokenizer.train("characters", texts)
    config = zoo.variants.dataclasses.replace(
        config, source_vocab_size=tokenizer.vocab_size, target_vocab_size=tokenizer.vocab_size
    )
    model = config.build()
    params = jax.jit(model.init)(jax.random.key(0), *config.example())["params"]
    return zoo.Predictor(model, params, tokenizer, tokenizer, zoo.Decoding(max_len=7, min_len=7))


def test_output_as_long_as_the_source():
    """Padding tells the sides apart, and is not shown."""
    found = attention.attend(predictor_of(rnn_attention.PRESETS["bahdanau-tiny"], ["abcdef"]), "abcdef")
    assert len(found["tokens"]["source"]) == len(found["tokens"]["target"]) == 7
    [only] = found["maps"]
    assert (only["queries"], only["keys"], np.shape(only["weights"])) == ("target", "source", (1, 7, 7))


def test_a_model_without_attention_is_one_error():
    with pytest.raises(UserError, match="Sutskever has no attention"):
        attention.page(predictor_of(rnn.PRESETS["elman-tiny"], ["ab"]), "ab")


def test_a_model_that_reads_no_text_is_one_error():
    with pytest.raises(UserError, match="Whisper does not read text"):
        attention.page(zoo.load(Path(MARIAN).with_name("whisper")), "ab")


def test_the_command_writes_a_page_of_its_own(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["attend", MARIAN, TEXT, "--out", str(out), "--beams", str(BEAMS)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    html = out.read_text()
    assert html.count("<script") == html.count("</script") == 2
    assert escape(TEXT) in html
    assert [each["text"] for each in data_of(html)["attention"]] == [TEXT]
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(|fetch\(|XMLHttpRequest|innerHTML", html)
    assert main(["attend", MARIAN, TEXT, "--out", str(tmp_path), "--beams", str(BEAMS)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_only_the_pages_own_script_may_run():
    html = document("<t>", "", {"text": "</script><script>x</script>\u2028"})
    assert "<title>&lt;t&gt;</title>" in html
    program = html.rpartition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert data_of(html) == {"text": "</script><script>x</script>\u2028"}
    with pytest.raises(ValueError, match="Out of range"):
        script_json(float("nan"))


@pytest.fixture(scope="module")
def written(marian, tmp_path_factory) -> Path:
    """A page of two models, one with layers and heads, and a chart."""
    from train.compare.charts import Chart, Series, figure

    both = [
        {"model": "<b>marian", **attention.attend(marian, TEXT, beams=BEAMS)},
        {"model": "bahdanau", **attention.attend(predictor_of(rnn_attention.PRESETS["bahdanau-tiny"], ["abcdef"]), "abcd")},
    ]
    chart = figure(
        Chart("n", "title", "note", "x, s", "y, %", [Series("one", [(0, 1), (2, 3)], 0), Series("two", [(1, 1)], 1)])
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(document("t", f"<section data-attention></section>{chart}", {"attention": both}), encoding="utf-8")
    return path


@pytest.fixture(params=[("light", 1280), ("dark", 375)], ids=["desktop", "phone-dark"])
def opened(request, browser, written) -> Iterator:
    scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.on("dialog", lambda dialog: (wrong.append("a script of the text ran"), dialog.dismiss()))
    page.goto(written.as_uri())
    yield page
    context.close()
    assert not wrong


def control(page, name: str):
    return page.locator(f"select[data-control={name}]")


def test_controls_work_in_a_browser(opened, marian):
    maps = {each["name"]: each["weights"] for each in attention.attend(marian, TEXT, beams=BEAMS)["maps"]}
    name = next(name for name in maps if name.endswith("cross"))
    control(opened, "layer").select_option(label=name)
    cell = opened.locator("td[role=gridcell]").nth(1)
    for head, weights in enumerate(maps[name]):
        if len(maps[name]) > 1:
            control(opened, "head").select_option(label=f"head {head + 1}")
        cell.hover()
        assert opened.locator("[role=status]").inner_text().endswith(f": {weights[0][1] / SCALE:.3f}")
    opened.locator("td[role=gridcell]").first.focus()
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowLeft")  # there is nothing to the left
    assert opened.locator("[role=status]").inner_text().endswith(f": {maps[name][-1][1][0] / SCALE:.3f}")
    control(opened, "view").select_option(label="aligned sentences")
    tokens = opened.locator("svg.aligned text.token")
    assert tokens.count() == sum(np.shape(maps[name])[1:])
    thick = [
        float(x) for x in opened.locator("svg.aligned line").evaluate_all("all => all.map(l => l.getAttribute('stroke-width'))")
    ]
    assert max(thick) == pytest.approx(9 * np.max(maps[name][-1]) / SCALE)
    tokens.first.focus()
    assert opened.locator("svg.aligned.chosen").count() == 1
    control(opened, "model").select_option(label="bahdanau")
    assert opened.locator("svg.aligned text.token").count() == 5 + 7
    assert not control(opened, "head").is_visible()


def test_it_fits_a_phone_and_follows_the_colour_scheme(opened):
    assert opened.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = int(re.findall(r"\d+", opened.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
    assert (red < 60) == dark


def test_curves_can_be_hidden(opened):
    box = opened.locator("input[data-series='1']")
    curve = opened.locator("g[data-series='1']")
    assert curve.is_visible()
    box.focus()
    opened.keyboard.press("Space")
    assert not curve.is_visible()
    assert opened.locator("g[data-series='0']").is_visible()
