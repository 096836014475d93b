"""Whether vectors learned from plain text help a model that has few pairs to learn from.

    python tests/benchmarks/word_vectors.py DIR [--pairs 1000] [--steps 600] [--seeds 3]

Word vectors (Mikolov et al. 2013) of letters and of phones are learned from the words and, apart from them, the pronunciations
of CMUdict's training split, each spelled out in a line; no line says what belongs together. Then Bahdanau's model learns from
the first pairs alone, once from random embeddings and once from these vectors (--init-embeddings), everything else the same,
with several seeds. What is done is not done again. The table has the phone and word error rate on the test words.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from fresh import ROOT

sys.path.insert(0, str(ROOT))
WAYS = ("random", "vectors")


def spelled(path: Path) -> None:
    """Write the text that vectors are learned from."""
    from train.data import CMUDICT

    lines = {line for example in CMUDICT.load("train") for line in (" ".join(example.source), *example.references)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def train(config: str, workdir: Path, *options: str) -> dict:
    """A run of ``python -m train``, and its result."""
    from train.__main__ import main as command

    if code := command([str(ROOT / "configs" / config), "--workdir", str(workdir), *options]):
        raise SystemExit(code)
    return json.loads((workdir / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--vector-steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    text, vectors = options.directory / "spelled.txt", options.directory / "vectors"
    if not text.exists():
        spelled(text)
    often = lambda steps: ["--training.steps", str(steps), "--training.eval-every", str(steps)]  # noqa: E731
    plain = ["--tokenizers.no-lowercase", "--data.subsample", "0", "--model.embed-dim", "64"]
    train("word2vec_text.py", vectors, "--data.train", str(text), *plain, *often(options.vector_steps))
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    few = ["--data.train-split", f"train[:{options.pairs}]", *often(options.steps)]
    for seed in range(options.seeds):
        for way, found in results.items():
            start = ["--init-embeddings", str(vectors)] if way == "vectors" else []
            found.append(train("bahdanau_g2p.py", options.directory / f"{way}-{seed}", *few, "--seed", str(seed), *start))
    print(f"\n{options.pairs} pairs, {options.steps} steps\n\n| embeddings start | PER % | WER % |\n|---|---|---|")
    for way, found in results.items():
        rates = [[one[f"test/{name}"] for one in found] for name in ("per", "wer")]
        print(f"| {way} | " + " | ".join(f"{statistics.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in rates) + " |")


if __name__ == "__main__":
    main()
