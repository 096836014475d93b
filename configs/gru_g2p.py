"""Cho's GRU encoder-decoder pronounces English words.

Paper     Cho et al. 2014.
Command   python -m train configs/gru_g2p.py --workdir runs/gru_g2p
Reached   16.2 % (16.0 to 16.4) PER, 51.8 % (51.1 to 52.3) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, took from 247 s on one core of an
          Intel Xeon (AVX-512).
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn import ChoConfig

experiment = Experiment(
    model=ChoConfig(embed_dim=64, hidden_dim=188, maxout_dim=64),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
