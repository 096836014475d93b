"""Word vectors of a plain text file: skip-gram with negative sampling.

Paper     Mikolov et al. 2013 (arXiv:1310.4546), at a third of its width. --data.predict centre is CBOW (arXiv:1301.3781).
Command   python -m train configs/word2vec_text.py --workdir runs/word2vec_text --data.train corpus.txt
          Each line is a text by itself; 5 % of the lines are kept for validation, 5 % for the test. Then
          python -m zoo similar runs/word2vec_text word
          python -m zoo analogy runs/word2vec_text king - man + woman
          Texts below ten million words are better kept whole: --data.subsample 1e-3
Reached   not trained on a large text yet. tests/test_word2vec.py learns a made-up text of 1,500 lines in 200 steps of vectors
          of 8 numbers: king - man + woman is queen, and so for prince and princess.
"""

from train.data import Batching, Windows
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.word2vec import Word2VecConfig

experiment = Experiment(
    model=Word2VecConfig(embed_dim=100),
    data=Windows(),
    tokenizers=Tokenizers(source="words", target="words", shared=True, min_count=5, lowercase=True),
    batching=Batching(tokens=8192),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", clip=0.0),
    training=Training(steps=20_000, log_every=100, eval_every=2000),
    task="vectors",
)
