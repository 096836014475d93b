"""Word vectors: skip-gram and CBOW with negative sampling, the first model of two papers by Mikolov et al. 2013.

  CBOW       "Efficient Estimation of Word Representations in Vector Space" (arXiv:1301.3781): the words around a place predict
             the word that stands there, by the mean of their vectors.
  skip-gram  the same paper: a word predicts each word around it; with negative sampling from "Distributed Representations of
             Words and Phrases and their Compositionality" (arXiv:1310.4546).

Both compute the same of what they read, and differ in which words are source and which target (``train.data.Windows`` says):

    h = mean of the source words' vectors v        the source: a centre word (skip-gram), or the words around one (CBOW)
    logit of a word w = v'_w . h                   the target: the words around it, or the centre word

Of each word to predict, equation 4 of the second paper tells it from k words of noise w_i, drawn from P(w)^(3/4):

    log sigma(v'_target . h) + sum_i log sigma(-v'_{w_i} . h)

A target with ``noise`` gives the logits of these 1 + k words alone, and no product over the vocabulary is computed.

Departures from the papers:
  - Batches, and whichever optimizer the run has, where the authors' program updates word by word by gradient descent; a batch's
    loss is the mean over the words predicted.
  - A word of noise that is the target itself does not count, as in the authors' program; the paper does not say.
  - No hierarchical softmax; no phrases, which a tokenizer of words finds only if the text joins them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.rules import embedding
from zoo.core import Encoded, EncoderOnly, ModelConfig, Outputs, Tokens
from zoo.nn.linear import Embed
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "plain text to word vectors"


@dataclasses.dataclass(frozen=True)
class Word2VecConfig(ModelConfig):
    """Mikolov et al. 2013.

    Attributes:
      embed_dim: width D of the vectors.
    """

    embed_dim: int = 300

    PAPER: ClassVar = "Mikolov et al. 2013"

    def build(self) -> Word2Vec:
        return Word2Vec(self)

    @property
    def wants_one_vocabulary(self) -> bool:
        return True

    def example(self, batch: int = 2, source_len: int = 7, target_len: int = 1, seed: int = 0) -> tuple[Tokens, Tokens]:
        """As for CBOW: the target is one word."""
        source, target = super().example(batch, source_len, target_len, seed)
        return source, Tokens(target.ids[:, :1], target.mask[:, :1])


PRESETS = {
    "tiny": Word2VecConfig(32, 32, embed_dim=32),
    # arXiv:1310.4546, section 3: 300 dimensions, and the 692,000 words seen at least 5 times in a billion.
    "mikolov-2013": Word2VecConfig(692_000, 692_000),
}


class Word2Vec(EncoderOnly):
    """Two tables: ``source_embedding`` holds the vectors v that are kept, ``target_embedding`` the v' that they are told by."""

    config: Word2VecConfig

    VECTORS: ClassVar = "source_embedding/embedding"

    def setup(self):
        c = self.config
        # The authors' program: v within +-1/2D, v' zero.
        around_zero = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -0.5, 0.5) / c.embed_dim  # noqa: E731
        self.source_embedding = Embed(c.source_vocab_size, c.embed_dim, embedding_init=around_zero)
        self.target_embedding = Embed(c.target_vocab_size, c.embed_dim, embedding_init=nn.initializers.zeros)

    def __call__(self, source: Tokens, target: Tokens | None = None, train: bool = False, attention: bool = False) -> Outputs:
        """The logits of every word (B, 1, V), alike for all of the target; or of its own words, each before its noise, where it
        has some (B, T, 1 + K)."""
        hidden_B1D = self.pool(self.encode(source, train=train))
        if target is None or target.noise is None:
            return Outputs(self.logits(hidden_B1D), {}, hidden_B1D)
        words_BTK = jnp.concatenate([target.ids[..., None], target.noise], axis=-1)
        return Outputs(jnp.einsum("bd,btkd->btk", hidden_B1D[:, 0], self.target_embedding(words_BTK)), {}, hidden_B1D)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Encoded:
        return Encoded(self.source_embedding(source.ids), source.mask, {})

    def pool(self, memory: Encoded, train: bool = False) -> jax.Array:
        """(B, 1, D) the mean of the real words' vectors; zero without any."""
        mask_BS1 = memory.mask_BS[..., None]
        total_B1D = jnp.where(mask_BS1, memory.hidden_BSD, 0).sum(axis=1, keepdims=True)
        return total_B1D / jnp.maximum(mask_BS1.sum(axis=1, keepdims=True), 1).astype(total_B1D.dtype)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return constrain(self.target_embedding.attend(hidden_BTD), BATCH, None, MODEL)

    # The names of two torch.nn.Embedding.
    RULES: ClassVar = embedding(r"(source|target)_embedding", r"\1_embedding")
    SHARDING: ClassVar = ((r".*embedding", P("model", "fsdp")),)
