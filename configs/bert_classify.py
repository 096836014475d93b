"""BERT, RoBERTa or DistilBERT tells labels, such as of two classes: from a published model, or from scratch.

Paper     Devlin et al. 2019, section 4.1; rates by layer, Howard and Ruder 2018; LoRA, Hu et al. 2021.
Command   python -m train configs/bert_classify.py --workdir runs/mine --init-from DIR --data.train labelled.tsv
          DIR is a Hugging Face directory or a name such as google-bert/bert-base-uncased (RoBERTa and DistilBERT have no
          pooler: --model.no-pooler); labelled.tsv has a text and a label in each line. A set of TFDS instead of files: set
          data to Tfds("imdb_reviews", "text", "label", validation_split="test[:5%]") here. Only the head learns with
          --optimizer.rate-rules "classifier.*" 1 ".*" 0, and only adapters, the head's too, with --lora.rank 8
          --lora.targets ".*(query|value|classifier)/kernel" --optimizer.learning-rate 1e-3.
          From scratch: without --init-from, with --model.num-layers 4 --model.d-model 256 and the like.
Reached   depends on the texts; no published model has been fine-tuned with it yet.
"""

from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.bert import BertConfig

experiment = Experiment(
    model=BertConfig(head="classification", pooler=True),
    data=Files(),
    tokenizers=Tokenizers(source="bpe", vocab_size=8000),
    batching=Batching(tokens=4096, max_source_len=256, max_target_len=1, buckets=3),
    optimizer=Optimizer("adamw", learning_rate=3e-5, schedule="cosine", warmup_steps=100, weight_decay=0.01, layer_decay=0.95),
    training=Training(steps=2000, eval_every=200),
    task="classify",
)
