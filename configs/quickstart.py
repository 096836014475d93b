"""The README's main job: Bahdanau's model, small, learns to pronounce English words in minutes on two CPU cores.

Paper     Bahdanau et al. 2015, at a tenth of its width; the data are the 126,052 words of CMUdict.
Command   python -m train configs/quickstart.py --workdir runs/quickstart
Reached   8.7 % PER, 35.4 % WER on the 6,295 test words, in 6 minutes on two cores of an AMD EPYC; one seed, greedy search.
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn_attention import BahdanauConfig

experiment = Experiment(
    model=BahdanauConfig(embed_dim=64, hidden_dim=128, attention_dim=64, maxout_dim=64),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=3072, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=100, b2=0.98),
    training=Training(steps=1800, log_every=50, eval_every=600),
    decoding=Decoding(max_len=32, max_source_len=32),
    task="pronunciation",
)
