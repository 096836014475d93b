"""The data room: where text pairs come from, and how they become batches of token ids."""

from train.data.audio import Heard, Recordings
from train.data.buckets import Batching, bucket_shapes
from train.data.check import check_ids
from train.data.pipeline import Batch, Tokenized, eval_batches, train_batches
from train.data.prefetch import prefetch_to_device
from train.data.sources import CMUDICT, Example, Files, Tfds
from train.data.windows import WindowBatches, Windows

__all__ = [
    "CMUDICT",
    "Batch",
    "Batching",
    "Example",
    "Files",
    "Heard",
    "Recordings",
    "Tfds",
    "Tokenized",
    "WindowBatches",
    "Windows",
    "bucket_shapes",
    "check_ids",
    "eval_batches",
    "prefetch_to_device",
    "train_batches",
]
