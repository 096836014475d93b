"""What a device would not complain about: it clamps ids that its tables do not hold, and learns on."""

from __future__ import annotations

import numpy as np

from train.data.pipeline import Batch
from zoo.core import Tokens, UserError


def check_ids(batch: Batch, source_vocab: int, target_vocab: int) -> None:
    """Raises UserError if a real token of a batch of host arrays is none of its vocabulary's, naming the example."""
    for side, tokens, size in (("source", batch.source, source_vocab), ("target", batch.target, target_vocab)):
        if not isinstance(tokens, Tokens):
            continue
        wrong_BN = ((tokens.ids < 0) | (tokens.ids >= size)) & tokens.mask
        if wrong_BN.any():
            row, column = np.argwhere(wrong_BN)[0]
            segment = 0 if tokens.segments is None else tokens.segments[row, column] - 1
            example, token_id = np.atleast_1d(batch.example_ids[row])[segment], tokens.ids[row, column]
            raise UserError(
                f"the {side} of example {example} has the token id {token_id} at position {column}, but the vocabulary has the "
                f"ids 0 to {size - 1}: the data must be tokenized by this run's tokenizers"
            )
