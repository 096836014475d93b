"""Luong's stacked LSTMs with global attention and input feeding pronounce English words.

Paper     Luong et al. 2015.
Command   python -m train configs/luong_g2p.py --workdir runs/luong_g2p
Reached   not trained at this size yet. At 585,856 parameters and 1,000 steps (235 s on 2 CPU cores, one seed):
          13.7 % PER and 51.2 % WER on the 6,295 test words, any listed pronunciation counting, with
          --training.steps 1000 --training.eval-every 500 --optimizer.learning-rate 3e-3
          --batching.tokens 3072 --training.label-smoothing 0
          --model.embed-dim 64 --model.hidden-dim 128 --model.dropout 0
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn_attention import LuongConfig

experiment = Experiment(
    model=LuongConfig(embed_dim=64, hidden_dim=120, num_layers=2),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
