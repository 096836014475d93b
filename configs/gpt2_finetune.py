"""A published GPT-2 goes on after your prompts as your own pairs do, or speaks as your own text does.

Paper     Radford et al. 2019; LoRA, Hu et al. 2021.
Command   python -m train configs/gpt2_finetune.py --workdir runs/mine --init-from DIR --data.train pairs.jsonl
          DIR is a Hugging Face directory or a name such as openai-community/gpt2; pairs.jsonl has a source, the prompt, and a
          target in each line, which begins with its space. For plain text, a line each: --data.train corpus.txt
          --batching.max-source-len 0 --task language. Adapters only: --lora.rank 8 --optimizer.learning-rate 1e-3.
          python -m zoo export runs/mine OUT --format huggingface writes what transformers loads.
Reached   depends on the text; no published model has been fine-tuned with it yet.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.gpt2 import GPT2Config

experiment = Experiment(
    model=GPT2Config(),
    data=Files(),
    batching=Batching(tokens=4096, max_source_len=256, max_target_len=256),
    optimizer=Optimizer("adamw", learning_rate=5e-5, schedule="cosine", warmup_steps=100, weight_decay=0.01),
    training=Training(steps=2000, eval_every=250),
    decoding=Decoding(max_len=128),
    task="text",
)
