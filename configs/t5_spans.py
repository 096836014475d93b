"""A small T5 on your own plain text, a text a line: spans are taken away and are to be said. Then fine-tune it.

Paper     Raffel et al. 2020, section 3.1.4, a small model of the v1.1 layout: 15 % of the tokens in spans of 3, drawn anew each
          epoch, with 100 sentinels behind the learned vocabulary.
Command   python -m train configs/t5_spans.py --workdir runs/t5 --data.train texts.txt
          5 % of the lines are kept for validation, 5 % for the test. Then
          python -m train configs/t5_tsv.py --workdir runs/mine --init-from runs/t5 --data.train pairs.tsv
Reached   depends on the texts: the score is the perplexity of the spans, given what is left of a text.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.t5 import T5Config

experiment = Experiment(
    model=T5Config(
        d_model=256,
        d_ff=512,
        num_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        activation="gated-gelu",
        share_output=False,
        scale_output=False,
    ),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000, sentinels=100),
    batching=Batching(tokens=8192, max_source_len=256, max_target_len=256),
    optimizer=Optimizer("adafactor", learning_rate=1e-2, schedule="inverse_sqrt", warmup_steps=1000),
    training=Training(steps=20_000),
    task="language",
    corruption="spans",
)
