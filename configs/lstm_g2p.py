"""Deep LSTMs pronounce English words.

Paper     Sutskever et al. 2014; for this task Yao & Zweig 2015 (5.45 % PER, 23.55 % WER with alignments).
Command   python -m train configs/lstm_g2p.py --workdir runs/lstm_g2p
Reached   14.2 % (14.0 to 14.6) PER, 49.9 % (49.2 to 50.9) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, took from 302 s on one core of an
          Intel Xeon (AVX-512).
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn import SutskeverConfig

experiment = Experiment(
    model=SutskeverConfig(embed_dim=64, hidden_dim=136, num_layers=2),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
