"""A published Whisper learns to write down your own recordings.

Paper     Radford et al. 2022, whose own rates for fine-tuning are not published; LoRA, Hu et al. 2021.
Command   python -m train configs/whisper_finetune.py --workdir runs/mine --init-from DIR --data.train train.tsv
          --data.language de
          DIR is a Hugging Face directory or a name such as openai/whisper-small; train.tsv (or .jsonl) has the path of a WAV or
          FLAC file and its text in each line. Recordings longer than 30 s are left out: cut them where nobody speaks.
          A model of English alone is told no language. --data.task translate if the texts are English and the speech is not.
          Half the memory: --compute.precision bfloat16 --compute.remat. Adapters only: --lora.rank 32
          --optimizer.learning-rate 1e-3; --optimizer.rate-rules "(encoder|convolution)_.*" 0 ".*" 1 freezes the encoder. Then
          python -m zoo predict runs/mine a.wav and python -m zoo export runs/mine OUT --format huggingface, which transformers
          loads.
Reached   depends on the recordings; no published model has been fine-tuned with it yet.
"""

from train.data import Batching, Recordings
from train.experiment import Experiment, Training
from train.optim import Optimizer
from zoo.whisper import WhisperConfig

experiment = Experiment(
    model=WhisperConfig(),
    data=Recordings(),
    batching=Batching(tokens=48_000, max_source_len=3000, max_target_len=448),  # 16 recordings of 3,000 frames
    optimizer=Optimizer("adamw", learning_rate=1e-5, schedule="cosine", warmup_steps=100, weight_decay=0.01),
    training=Training(steps=2000, eval_every=250, eval_examples=128),
    task="speech",
)
