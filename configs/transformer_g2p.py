"""A Transformer pronounces English words.

Paper     Vaswani et al. 2017; for this task CMUSphinx g2p-seq2seq (30-31 % WER) and Yolchuyeva 2019 (5.23 % PER, 22.1 % WER).
Command   python -m train configs/transformer_g2p.py --workdir runs/transformer_g2p
Reached   NOTE
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.predictor import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(
        d_model=256, d_ff=1024, num_heads=4, num_layers=3, dropout=0.1, norm="pre", share_embeddings="target"
    ),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=4096, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=400, b2=0.98),
    training=Training(steps=10_000, label_smoothing=0.1, log_every=100, eval_every=1000),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
