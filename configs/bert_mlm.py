"""BERT on your own plain text, a text a line: masked tokens are to be filled in. Then fine-tune it, or take its vectors.

Paper     Devlin et al. 2019, a small model, without next-sentence prediction and with masks drawn anew each epoch, as in Liu et
          al. 2019.
Command   python -m train configs/bert_mlm.py --workdir runs/mlm --data.train texts.txt
          5 % of the lines are kept for validation, 5 % for the test.
Reached   depends on the texts: the score is the perplexity of the masked tokens.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.bert import BertConfig

experiment = Experiment(
    model=BertConfig(head="masked_lm", d_model=256, d_ff=1024, num_heads=4, num_layers=4, max_len=128),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", target="bpe", shared=True, vocab_size=8000),
    batching=Batching(tokens=4096, max_source_len=128, max_target_len=128),
    optimizer=Optimizer(learning_rate=5e-4, schedule="cosine", warmup_steps=1000, b2=0.98, weight_decay=0.01),
    training=Training(steps=20_000),
    task="language",
    corruption="mask",
)
