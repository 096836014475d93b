"""The arrows of the house: who may import whom, and what importing the core may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.variants import variants

ROOT = Path(__file__).parent.parent
ALLOWED_AT_TOP = {"jax", "flax", "numpy"}
# What train may know of zoo: never a variant.
ZOO_FOR_TRAIN = {"zoo"} | {
    f"zoo.{room}" for room in ["core", "decoding", "generate", "checkpoint", "text", "predictor", "variants"]
}


def files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports; ``from a import b`` counts as a.b where that is a module, else as a."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            base = ROOT / Path(*node.module.split("."))
            for alias in node.names:
                is_module = (base / f"{alias.name}.py").exists() or (base / alias.name).is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files("zoo"), ids=id_of)
def test_zoo_knows_neither_train_nor_configs(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("train", "configs", "tests")}


@pytest.mark.parametrize("path", files("zoo"), ids=id_of)
def test_zoo_imports_only_jax_flax_numpy_at_top_level(path):
    outside = {name.split(".")[0] for name in imports(path, top_level_only=True)} - sys.stdlib_module_names - {"zoo"}
    assert outside <= ALLOWED_AT_TOP, f"import {outside - ALLOWED_AT_TOP} inside the function that needs it"


@pytest.mark.parametrize("path", [Path(module.__file__) for module in variants().values()], ids=id_of)
def test_variants_never_import_each_other(path):
    others = {f"zoo.{name}" for name in variants()} - {f"zoo.{path.stem}"}
    assert not imports(path) & others


@pytest.mark.parametrize("path", files("train"), ids=id_of)
def test_train_never_imports_a_variant(path):
    used = {name for name in imports(path) if name.split(".")[0] == "zoo"}
    rooms = {name for name in used if name in ZOO_FOR_TRAIN or name.rpartition(".")[0] in ZOO_FOR_TRAIN - {"zoo"}}
    assert used <= rooms, f"train may not know {used - rooms}"


@pytest.mark.parametrize("path", files("zoo/generate"), ids=id_of)
def test_generation_names_no_model(path):
    assert {name for name in imports(path) if name.startswith("zoo")} <= {
        "zoo.core",
        *(f"zoo.generate.{file.stem}" for file in files("zoo/generate")),
    }


@pytest.mark.parametrize("path", files("configs"), ids=id_of)
def test_configs_import_one_variant_and_are_short(path):
    used = imports(path)
    assert len(used & {f"zoo.{name}" for name in variants()}) == 1
    assert {name.split(".")[0] for name in used} == {"zoo", "train"}
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 40
    note = ast.get_docstring(ast.parse(text))
    assert note, "the docstring is the lab note"
    if path.stem != "quickstart":
        assert all(word in note for word in ("Paper", "Command", "Reached"))
    assert f"configs/{path.stem}.py" in note


def test_only_golden_values_and_the_peers_of_a_benchmark_import_torch():
    assert [
        id_of(p)
        for p in files("zoo", "train", "configs", "tests")
        if p.parent.name != "families" and "torch" in {n.split(".")[0] for n in imports(p)}
    ] == [
        "tests/benchmarks/generation_peers.py",
        "tests/golden/make_golden.py",
        "tests/peers.py",
    ]


def test_import_zoo_loads_nothing_of_ours_but_jax_and_flax():
    """In a fresh process: what ``import zoo`` adds to jax and flax.linen is our own code."""
    code = (
        "import sys, jax, flax.linen; before = set(sys.modules); import zoo; from zoo import rnn_attention; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["zoo"]


def test_the_readme_has_the_table_of_variants():
    """README's table is what ``python -m zoo list`` prints."""
    found = subprocess.run([sys.executable, "-m", "zoo", "list"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_pickle_and_no_eval():
    """Nothing untrusted is unpickled or executed; the config file that the user names is the one thing that runs."""
    for path in files("zoo", "train"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not called & {"eval", "exec", "__import__"}, path
        assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
        if path.name != "__main__.py" or path.parent.name != "train":
            assert "runpy" not in imports(path), path
