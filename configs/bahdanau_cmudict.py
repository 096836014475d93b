"""RNNsearch pronounces English words as well as an hour and a quarter of one core allows.

Paper     Bahdanau et al. 2015, at a quarter of its width, with dropout, label smoothing and averaged parameters.
Command   python -m train configs/bahdanau_cmudict.py --workdir runs/bahdanau_cmudict
Reached   5.7 % PER, 24.1 % WER on the 6,295 test words, any listed pronunciation counting; one seed. 10,500 steps, some 16
          passes, took 74 minutes on one core of an Intel Xeon (AVX-512), while the other was busy.
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn_attention import BahdanauConfig

experiment = Experiment(
    model=BahdanauConfig(embed_dim=128, hidden_dim=256, attention_dim=128, maxout_dim=128, dropout=0.2),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=200, b2=0.98, ema=0.999),
    training=Training(steps=10_500, label_smoothing=0.1, log_every=100, eval_every=1500),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
