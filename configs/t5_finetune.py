"""A published T5, Flan-T5, mT5, ByT5 or CodeT5 does your own task, or goes on being pre-trained on your own text.

Paper     Raffel et al. 2020, section 3.1.2: a constant rate of 1e-3 and Adafactor; LoRA, Hu et al. 2021.
Command   python -m train configs/t5_finetune.py --workdir runs/mine --init-from DIR --data.train pairs.tsv
          DIR is a Hugging Face directory or a name such as google-t5/t5-small; pairs.tsv (or .jsonl) has a source, with the
          task's prefix if it has one, and a target in each line. Adapters only: --lora.rank 8.
          Span corruption of plain text, a text a line: --data.train texts.txt --task language --corruption spans. Then
          python -m zoo export runs/mine OUT --format huggingface writes what transformers loads.
Reached   depends on the task; no published model has been fine-tuned with it yet.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.t5 import T5Config

experiment = Experiment(
    model=T5Config(),
    data=Files(),
    batching=Batching(tokens=4096, max_source_len=256, max_target_len=256),
    optimizer=Optimizer("adafactor", learning_rate=1e-3),
    training=Training(steps=2000, eval_every=250),
    decoding=Decoding(max_len=128),
    task="text",
)
