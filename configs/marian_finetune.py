"""A published Marian, M2M-100 or NLLB translates as your own text pairs do.

Paper     Junczys-Dowmunt et al. 2018; OPUS-MT's models, Tiedemann and Thottingal 2020; LoRA, Hu et al. 2021.
Command   python -m train configs/marian_finetune.py --workdir runs/mine --init-from DIR --data.train pairs.tsv
          DIR is a Hugging Face directory or a name such as Helsinki-NLP/opus-mt-en-de; pairs.tsv (or .jsonl) has a source and
          a target in each line. --lora.rank 8 --optimizer.learning-rate 1e-3 trains adapters only;
          --optimizer.rate-rules "encoder_.*" 0 ".*" 1 freezes the encoder. Then
          python -m zoo export runs/mine OUT --format huggingface writes what transformers loads.
Reached   depends on the pairs; no published model has been fine-tuned with it yet.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Training
from train.optim import Optimizer
from zoo.marian import MarianConfig

experiment = Experiment(
    model=MarianConfig(),
    data=Files(),
    batching=Batching(tokens=4096, max_source_len=256, max_target_len=256),
    optimizer=Optimizer("adamw", learning_rate=3e-5, schedule="cosine", warmup_steps=100, weight_decay=0.01),
    training=Training(steps=2000, label_smoothing=0.1, eval_every=250),
    task="translation",
)
