"""RNNsearch pronounces English words.

Paper     Bahdanau et al. 2015; for this task Toshniwal & Livescu 2016 report 4.69 % PER and 20.24 % WER (ensemble).
Command   python -m train configs/bahdanau_g2p.py --workdir runs/bahdanau_g2p
Reached   NOTE
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.predictor import Decoding
from zoo.rnn_attention import BahdanauConfig

experiment = Experiment(
    model=BahdanauConfig(embed_dim=256, hidden_dim=384, attention_dim=256, maxout_dim=256, dropout=0.2),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=4096, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=400, b2=0.98),
    training=Training(steps=10_000, label_smoothing=0.1, log_every=100, eval_every=1000),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
