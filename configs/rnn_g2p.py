"""Elman's simple recurrent network pronounces English words.

Paper     Elman 1990, as an encoder-decoder: one vector between word and phones, and gradients that vanish along it.
Command   python -m train configs/rnn_g2p.py --workdir runs/rnn_g2p
Reached   not trained at this size yet. At 180,267 parameters and 1,000 steps (88 s on 2 CPU cores, one seed):
          34.3 % PER and 76.4 % WER on the 6,295 test words, any listed pronunciation counting, with
          --training.steps 1000 --training.eval-every 500 --optimizer.learning-rate 3e-3
          --batching.tokens 3072 --training.label-smoothing 0
          --model.embed-dim 64 --model.hidden-dim 256 --model.dropout 0
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
