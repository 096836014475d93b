"""A Transformer pronounces English words.

Paper     Vaswani et al. 2017; for this task CMUSphinx g2p-seq2seq (30 to 31 % WER on this dictionary).
Command   python -m train configs/transformer_g2p.py --workdir runs/transformer_g2p
Reached   not trained at this size yet. At 529,920 parameters and 1,000 steps (267 s on 2 CPU cores, one seed):
          11.3 % PER and 42.7 % WER on the 6,295 test words, any listed pronunciation counting, with
          --training.steps 1000 --training.eval-every 500 --optimizer.learning-rate 3e-3
          --batching.tokens 3072 --training.label-smoothing 0
          --model.d-model 96 --model.d-ff 384 --model.num-layers 2 --model.dropout 0
"""

from train.data import CMUDICT, Batching
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(d_model=96, d_ff=384, num_heads=4, num_layers=2, dropout=0, norm="pre", share_embeddings="target"),
    data=CMUDICT,
    tokenizers=Tokenizers(source="characters", target="words"),
    batching=Batching(tokens=2048, max_source_len=32, max_target_len=32, buckets=3),
    optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=150, b2=0.98),
    training=Training(steps=1500, log_every=50, eval_every=300),
    decoding=Decoding(beams=4, max_len=32, max_source_len=32),
    task="pronunciation",
)
