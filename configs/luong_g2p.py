"""Luong's stacked LSTMs with global attention and input feeding pronounce English words.

Paper     Luong et al. 2015.
Command   python -m train configs/luong_g2p.py --workdir runs/luong_g2p
Reached   11.3 % (11.2 to 11.4) PER, 44.4 % (44.2 to 44.6) WER on the 6,295 test words, any listed pronunciation counting;
          the mean of three seeds, and their range. 1,500 steps, a little over two passes, on one core of an Intel Xeon.
          How a letter sounds depends on those that follow: with an encoder that read from left to right 51.1 % (50.6 to 51.4)
          of the words were wrong, and the attention looked at the letter after the one that was spoken.
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn_attention import LuongConfig

experiment = Experiment(
    model=LuongConfig(embed_dim=64, hidden_dim=120, num_layers=2, reverse_source=True),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
