"""RNNsearch pronounces English words.

Paper     Bahdanau et al. 2015; for this task Toshniwal & Livescu 2016 report 4.69 % PER and 20.24 % WER (ensemble).
Command   python -m train configs/bahdanau_g2p.py --workdir runs/bahdanau_g2p
Reached   9.3 % (9.2 to 9.4) PER, 37.9 % (37.8 to 38.0) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, took from 347 s on one core of an
          Intel Xeon (AVX-512).
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn_attention import BahdanauConfig

experiment = Experiment(
    model=BahdanauConfig(embed_dim=64, hidden_dim=144, attention_dim=96, maxout_dim=64),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
