"""The README's main job: a small Transformer learns to pronounce English, on two CPU cores."""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.predictor import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(
        d_model=128, d_ff=512, num_heads=4, num_layers=2, dropout=0.0, norm="pre", share_embeddings="target"
    ),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=3072, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=200, b2=0.98),
    training=Training(steps=2000, log_every=50, eval_every=500),
    decoding=Decoding(max_len=32, max_source_len=32),
    task="pronunciation",
)
