"""A Transformer pronounces English words.

Paper     Vaswani et al. 2017; for this task CMUSphinx g2p-seq2seq (30 to 31 % WER on this dictionary).
Command   python -m train configs/transformer_g2p.py --workdir runs/transformer_g2p
Reached   10.6 % (10.5 to 10.8) PER, 40.7 % (40.5 to 41.0) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, took from 392 s on one core of an
          Intel Xeon (AVX-512).
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(d_model=96, d_ff=384, num_heads=4, num_layers=2, dropout=0, norm="pre", share_embeddings="target"),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
