"""A Transformer on your own text pairs: one TSV, JSONL or Parquet file, or two parallel text files.

Paper     Vaswani et al. 2017, a small model with pre-norm, for ten thousand to a million pairs.
Command   python -m train configs/transformer_tsv.py --workdir runs/mine --data.train pairs.tsv
          pairs.tsv has a source and a target in each line, with a tab between; 5 % are kept for validation, 5 % for the test.
Reached   depends on the pairs. See also --task translation, and --data.validation and --data.test for files of your own.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.transformer import TransformerConfig

experiment = Experiment(
    model=TransformerConfig(d_model=256, d_ff=1024, num_heads=4, num_layers=3, norm="pre"),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000),
    batching=Batching(tokens=4096, max_source_len=128, max_target_len=128),
    optimizer=Optimizer(learning_rate=1e-3, schedule="inverse_sqrt", warmup_steps=1000, b2=0.98),
    training=Training(steps=20_000, label_smoothing=0.1),
    decoding=Decoding(beams=4, max_len=128, max_source_len=128),
    task="text",
)
