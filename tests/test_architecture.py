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
ROOMS = [
    "core",
    "decoding",
    "generate",
    "checkpoint",
    "text",
    "speech",
    "transcribe",
    "labels",
    "page",
    "predictor",
    "predictor_base",
    "predictors",
    "variants",
    "vectors",
]
ZOO_FOR_TRAIN = {"zoo"} | {f"zoo.{room}" for room in ROOMS}


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
        "tests/benchmarks/pretrained_peers.py",
        "tests/benchmarks/training_peers.py",
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


# What turns data into code, or could: names that are called or read, and modules that are imported.
DANGEROUS = {
    *("eval", "exec", "__import__", "import_module", "run_path", "run_module", "resolve_name", "locate"),
    *("exec_module", "load_module", "spec_from_file_location", "unsafe_load", "full_load", "system", "popen"),
    *("builder_from_directory", "builder_from_directories", "builder_from_files", "ReadOnlyBuilder"),
}
MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "runpy", "importlib", "code", "imp", "pydoc", "yaml"}
ALLOWED = {
    "train/__main__.py": {"runpy", "run_path"},  # the config file that the user names
    "zoo/variants.py": {"importlib", "import_module"},  # the package's own files, by their names
}


def dangers(source: str) -> set[str]:
    """The names in a file by which something untrusted could be unpickled, evaluated or imported."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found |= {name} & DANGEROUS
            if name == "compile" and isinstance(node, ast.Name):
                found.add(name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names]
            found |= set(names) & DANGEROUS
            modules = modules or names
            found |= {name.partition(".")[0] for name in modules if name != "importlib.metadata"} & MODULES
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.add("allow_pickle")
        elif isinstance(node, ast.Constant) and node.value in ("__import__", "__builtins__", "__subclasses__"):
            found.add(node.value)
    return found


@pytest.mark.parametrize("path", files("zoo", "train"), ids=id_of)
def test_nothing_untrusted_is_unpickled_evaluated_or_imported(path):
    assert dangers(path.read_text(encoding="utf-8")) == ALLOWED.get(id_of(path), set())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import numpy, marshal as m", "marshal"),
        ("x = eval(text)", "eval"),
        ("f = exec", "exec"),
        ("import builtins\nbuiltins.eval(text)", "eval"),
        ("from builtins import exec as run", "exec"),
        ("getattr(x, '__import__')", "__import__"),
        ("code = compile(text, 'f', 'exec')", "compile"),
        ("import importlib\nimportlib.import_module(name)", "import_module"),
        ("from importlib import import_module as load", "import_module"),
        ("import importlib.util", "importlib"),
        ("import yaml\nyaml.load(text)", "yaml"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("np.load(path, allow_pickle=flag)", "allow_pickle"),
        ("import runpy", "runpy"),
        ("import pkgutil\npkgutil.resolve_name(name)", "resolve_name"),
        ("tfds.builder_from_directory(path)", "builder_from_directory"),
        ("import os\nos.system(text)", "system"),
    ],
)
def test_a_planted_danger_is_seen(source, name):
    assert name in dangers(f"def f():\n    pass\n{source}\n")


def test_harmless_code_is_no_danger():
    assert not dangers("import importlib.metadata, re\nre.compile(x)\njax.eval_shape(f)\nnp.load(p, allow_pickle=False)")


def test_the_linter_sees_the_same():
    """Ruff's S rules are on for zoo/ and train/."""
    source = "import marshal\nimport pickle\n\npickle.loads(b'')\nmarshal.loads(b'')\neval(input())\nexec(input())\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename"]
    for room in ("zoo", "train"):
        found = subprocess.run([*command, f"{room}/planted.py", "-"], input=source, capture_output=True, text=True, cwd=ROOT)
        assert {"S301", "S302", "S307", "S102"} <= set(found.stdout.replace(":", " ").split()), found
