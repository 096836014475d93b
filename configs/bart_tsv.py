"""A BART on your own pairs of text and summary: one TSV, JSONL or Parquet file, or two parallel text files.

Paper     Lewis et al. 2020, a small model from scratch: its blocks, learned positions and gelu, without the denoising.
Command   python -m train configs/bart_tsv.py --workdir runs/mine --data.train pairs.tsv
          pairs.tsv has a text and its summary in each line, with a tab between; 5 % are kept for validation, 5 % for the test.
Reached   depends on the pairs. See also --data.validation and --data.test for files of your own.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.bart import BartConfig, sizes
from zoo.decoding import Decoding

experiment = Experiment(
    model=BartConfig(**sizes(256, (3, 3), 4, 1024), max_len=512),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000),
    batching=Batching(tokens=8192, max_source_len=512, max_target_len=128),
    optimizer=Optimizer(learning_rate=1e-3, schedule="inverse_sqrt", warmup_steps=1000, b2=0.98),
    training=Training(steps=20_000, label_smoothing=0.1),
    decoding=Decoding(beams=4, max_len=128, max_source_len=512, no_repeat_ngram=3),
    task="text",
)
