"""BART on your own plain text, a text a line: a text with spans taken away is to be written whole. Then fine-tune it.

Paper     Lewis et al. 2020, a small model: text infilling and sentences in another order, drawn anew each epoch. A text of one
          sentence keeps its order: give several in a line.
Command   python -m train configs/bart_denoise.py --workdir runs/bart --data.train texts.txt
          5 % of the lines are kept for validation, 5 % for the test. Then
          python -m train configs/bart_tsv.py --workdir runs/mine --init-from runs/bart --data.train pairs.tsv
Reached   depends on the texts: the score is the perplexity of the whole text, given what is left of it.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.bart import BartConfig, sizes

experiment = Experiment(
    model=BartConfig(**sizes(256, (3, 3), 4, 1024), max_len=512),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000),
    batching=Batching(tokens=8192, max_source_len=256, max_target_len=256),
    optimizer=Optimizer("adamw", learning_rate=5e-4, schedule="cosine", warmup_steps=1000, b2=0.98, weight_decay=0.01),
    training=Training(steps=20_000),
    task="language",
    corruption="infill",
)
