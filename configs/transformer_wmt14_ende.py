"""Transformer-base translates English to German.

Paper     Vaswani et al. 2017, table 2: 27.3 BLEU (base), 28.4 (big); 100,000 steps of 25,000 source and target tokens.
Command   python -m train configs/transformer_wmt14_ende.py --workdir runs/wmt14
Cost      the paper's base model took 12 hours on 8 P100; TFDS downloads and prepares the corpus on first use.
Reached   not trained here: the corpus needs a download. The pipeline is tested on mock data of the same builder.
"""

from train.data import Batching, Tfds
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(),
    data=Tfds("wmt14_translate/de-en", source="en", target="de"),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=37_000),
    batching=Batching(tokens=25_000, max_source_len=128, max_target_len=128, buckets=6),
    optimizer=Optimizer(learning_rate=7e-4, schedule="inverse_sqrt", warmup_steps=4000, b2=0.98, eps=1e-9),
    training=Training(steps=100_000, label_smoothing=0.1, log_every=100, eval_every=5000, eval_examples=3000),
    decoding=Decoding(beams=4, length_penalty=0.6, max_len=192, max_source_len=128),
    task="translation",
)
