"""Elman's simple recurrent network pronounces English words.

Paper     Elman 1990, as an encoder-decoder: one vector between word and phones, and gradients that vanish along it.
Command   python -m train configs/rnn_g2p.py --workdir runs/rnn_g2p
Reached   30.6 % (30.2 to 31.0) PER, 73.8 % (73.4 to 74.3) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, took from 280 s on one core of an
          Intel Xeon (AVX-512).
          It wants a lower rate than the other models: at 3e-3 it stayed at 57 % PER.
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn import ElmanConfig

experiment = Experiment(
    model=ElmanConfig(embed_dim=64, hidden_dim=464, num_layers=1),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
