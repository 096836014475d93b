"""A small T5 of the v1.1 layout on your own text pairs: one TSV, JSONL or Parquet file, or two parallel text files.

Paper     Raffel et al. 2020 and Shazeer 2020, at a tenth of the smallest model's size.
Command   python -m train configs/t5_tsv.py --workdir runs/t5 --data.train pairs.tsv
          Several tasks in one file: begin each source with its own prefix, such as "translate English to German: ".
Reached   depends on the pairs.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.t5 import T5Config

experiment = Experiment(
    model=T5Config(
        d_model=256,
        d_ff=512,
        num_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        activation="gated-gelu",
        share_output=False,
        scale_output=False,
    ),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000),
    batching=Batching(tokens=4096, max_source_len=128, max_target_len=128),
    optimizer=Optimizer(learning_rate=1e-3, schedule="inverse_sqrt", warmup_steps=1000, b2=0.98),
    training=Training(steps=20_000, label_smoothing=0.1),
    decoding=Decoding(beams=4, max_len=128, max_source_len=128),
    task="text",
)
