"""A small GPT-2 learns the language of a plain text file, each line a document by itself.

Paper     Radford et al. 2019, at a fortieth of the smallest model's size.
Command   python -m train configs/gpt2_text.py --workdir runs/gpt2_text --data.train corpus.txt
          5 % of the lines are kept for validation, 5 % for the test; perplexity is a subword's.
          To learn continuations of prompts instead: --data.train pairs.tsv --batching.max-source-len 128 --task text
Reached   not trained at this size yet. At 91,648 parameters and 60 steps on 2,715 lines of a made-up grammar (CPU, one seed)
          perplexity fell from 75 at step 30 to 28.9 on 132 test lines, with --training.steps 60 --training.eval-every 30
          --model.d-model 64 --model.d-ff 128 --model.num-layers 2 --model.num-heads 4
          --tokenizers.vocab-size 200 --batching.tokens 1024
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.gpt2 import GPT2Config

experiment = Experiment(
    model=GPT2Config(d_model=192, num_layers=4, num_heads=6, d_ff=768, max_len=256),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=4000),
    batching=Batching(tokens=4096, max_source_len=0, max_target_len=128),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=100, b2=0.95, weight_decay=0.1),
    training=Training(steps=2000, log_every=50, eval_every=500, eval_examples=64),
    decoding=Decoding(sample=True, top_k=40, max_len=64, max_source_len=64),
    task="language",
)
