"""A model small enough to enumerate, a table of logits played as one, and the beam search that both are held against."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo import core
from zoo.core import BOS, EOS, PAD
from zoo.generate import Beam, Generated, Greedy, Rules, penalty

MAX_LEN = 4
WIDTH = 6


@dataclasses.dataclass(frozen=True)
class ToyConfig(core.ModelConfig):
    dtype: str = "float32"


class Toy(core.Seq2Seq):
    """A tiny attentive RNN: its logits depend on the whole prefix, through a cache, and on the whole source."""

    def setup(self):
        normal, config = nn.initializers.normal(1.5), self.config
        self.source = self.param("source", normal, (config.source_vocab_size, WIDTH))
        self.embed = self.param("embed", normal, (config.target_vocab_size, WIDTH))
        self.mix = self.param("mix", normal, (WIDTH, WIDTH))
        self.out = self.param("out", normal, (WIDTH, config.target_vocab_size))

    def encode(self, source, train=False, attention=False):
        return {"keys": self.source[source.ids], "mask": jnp.asarray(source.mask)}

    def init_cache(self, memory, max_len, beams=1):
        return {"state": jnp.zeros((memory["mask"].shape[0] * beams, WIDTH)), "index": jnp.int32(0)}

    def decode(self, tokens_BT, memory, cache=None, train=False, attention=False):
        cache = self.init_cache(memory, 0, tokens_BT.shape[0] // memory["mask"].shape[0]) if cache is None else cache
        state_BD, states = cache["state"], []
        for token_B in tokens_BT.T:
            state_BD = jnp.tanh(self.embed[token_B] + state_BD @ self.mix)
            states.append(state_BD)
        x_BTD = jnp.stack(states, axis=1)
        x_bWTD = x_BTD.reshape(memory["mask"].shape[0], -1, *x_BTD.shape[1:])
        scores_bWTS = jnp.einsum("bwtd,bsd->bwts", x_bWTD, memory["keys"])
        weights_bWTS = jax.nn.softmax(jnp.where(memory["mask"][:, None, None], scores_bWTS, -1e9), axis=-1)
        context_BTD = jnp.einsum("bwts,bsd->bwtd", weights_bWTS, memory["keys"]).reshape(x_BTD.shape)
        hidden_BTD = x_BTD + 0.5 * context_BTD
        weights = {"layer/cross": weights_bWTS.reshape(len(tokens_BT), 1, *weights_bWTS.shape[2:])} if attention else {}
        outputs = core.Outputs(self.logits(hidden_BTD), weights, hidden_BTD)
        return outputs, {"state": state_BD, "index": cache["index"] + tokens_BT.shape[1]}

    def logits(self, hidden_BTD):
        return (hidden_BTD @ self.out).astype(self.config.dtype)


def toy(seed: int, batch: int = 3, vocab: int = 6, dtype: str = "float32", length: int = 5):
    """A toy model with random weights, and a ragged batch for it."""
    config = ToyConfig(source_vocab_size=7, target_vocab_size=vocab, dtype=dtype)
    rng = np.random.default_rng(seed)
    shapes = {"source": (7, WIDTH), "embed": (vocab, WIDTH), "mix": (WIDTH, WIDTH), "out": (WIDTH, vocab)}
    params = {name: rng.normal(size=shape, scale=0.9).astype(np.float32) for name, shape in shapes.items()}
    return Toy(config), jax.tree.map(jnp.asarray, params), core.random_tokens(rng, batch, length, 7)


@jax.jit
def forced(params, source, ids_WT):
    """W sequences for each of B sentences: log-probabilities after each prefix (B, W, T + 1, V), attention (B, W, T + 1, S)."""
    model = Toy(ToyConfig(source_vocab_size=7, target_vocab_size=params["embed"].shape[0]))
    memory = model.apply({"params": params}, source, method="encode")
    tokens_WT = jnp.pad(ids_WT, ((0, 0), (1, 0)), constant_values=BOS)
    batch = source.mask.shape[0]
    outputs, _ = model.apply({"params": params}, jnp.tile(tokens_WT, (batch, 1)), memory, attention=True, method="decode")
    shape = (batch, *tokens_WT.shape, -1)
    return jax.nn.log_softmax(outputs.logits).reshape(shape), outputs.attention["layer/cross"].reshape(shape)


Oracle = Mapping[tuple, np.ndarray]
"""Every prefix of tokens that may be generated -> the log-probabilities of the next token."""


def oracles(params, source, length: int = MAX_LEN) -> list[Oracle]:
    """The oracle of each sentence, of prefixes shorter than ``length``."""
    return [log_probs for log_probs, _ in oracles_and_attention(params, source, length)]


def oracles_and_attention(params, source, length: int = MAX_LEN) -> list[tuple[Oracle, dict[tuple, np.ndarray]]]:
    """The same, each with the attention weights (S,) with which the token after the prefix is predicted."""
    sequences = list(itertools.product(range(EOS + 1, params["embed"].shape[0]), repeat=length - 1))
    sentences = (np.asarray(x, np.float64) for x in forced(params, source, np.asarray(sequences, np.int32)))
    return [
        tuple({seq[:t]: x_WTN[w, t] for w, seq in enumerate(sequences) for t in range(length)} for x_WTN in sentence)
        for sentence in zip(*sentences)
    ]


Score = Callable[[float, int], float]
"""(the sum of the log-probabilities, the length) -> the score under a length penalty."""


def gnmt(alpha: float) -> Score:
    return lambda total, length: total / ((5 + length) / 6) ** alpha


def power(alpha: float, word: float = 0.0) -> Score:
    return lambda total, length: (total - word * length) / length**alpha


def path_sum(oracle: Oracle, ids: tuple) -> float:
    return sum(oracle[ids[:t]][token] for t, token in enumerate(ids))


def every_hypothesis(oracle: Oracle, limit: int, score: Score, min_len: int = 0, cut: bool = True) -> list[tuple[float, tuple]]:
    """The whole space, best first: every sequence that ends within the limit, or (with ``cut``) is cut there."""
    found = []
    for prefix, log_probs in oracle.items():
        length = len(prefix) + 1
        if length > limit:
            continue
        last = [EOS] if length >= min_len or (not cut and length == limit) else []
        last += range(EOS + 1, len(log_probs)) if cut and length == limit else []
        found += [(score(path_sum(oracle, (*prefix, token)), length), (*prefix, token)) for token in last]
    return sorted(found, reverse=True)


def python_beam(
    oracle: Oracle,
    beams: int,
    limit: int,
    score: Score,
    *,
    keep: int = 1,
    min_len: int = 0,
    groups: int = 1,
    diversity: float = 0.0,
    stop: Callable[[float, list[float], int], bool] | None = None,
) -> list[tuple[float, tuple]]:
    """Beam search by the rules of zoo/generate/beam.py.

    ``stop(the best live sum, the bank's scores best first, the length)`` ends a group; without it, all go on to the limit.
    """
    W = beams // groups
    live, bank, done = [[(0.0, ())] for _ in range(groups)], [[] for _ in range(groups)], [False] * groups
    for length in range(1, limit + 1):
        taken = []
        for g in range(groups):
            candidates = [
                (total + oracle[prefix][token], (*prefix, token))
                for total, prefix in live[g]
                for token in range(EOS, len(oracle[prefix]))
                if token != EOS or length >= min_len
            ]
            candidates.sort(key=lambda c: -(c[0] - diversity * taken.count(c[1][-1])))
            taken += [ids[-1] for _, ids in candidates[:W]]
            ended = [c for c in candidates[:W] if c[1][-1] == EOS]
            live[g] = [c for c in candidates if c[1][-1] != EOS][:W]
            if length == limit:  # a rule that is not exact closes none but the first W candidates
                ended = candidates[:W] if stop else ended + live[g]
            if not done[g]:
                bank[g] += [(score(total, length), ids) for total, ids in ended]
                bank[g] = sorted(bank[g], key=lambda c: -c[0])[:W]
                done[g] = not live[g] or (stop is not None and stop(max(live[g])[0], [s for s, _ in bank[g]], length))
    return sorted(itertools.chain(*bank), key=lambda c: -c[0])[:keep]


def hypotheses(out: Generated) -> list[list[tuple[float, tuple]]]:
    """Each sentence's real hypotheses as (score, ids without padding); also checks how they are padded and scored."""
    ids_BNT, log_probs_BNT, score_BN, length_BN = (np.asarray(x) for x in out[:4])
    assert [x.dtype for x in out[:4]] == [jnp.int32, jnp.float32, jnp.float32, jnp.int32]
    if score_BN.ndim == 1:
        ids_BNT, log_probs_BNT, score_BN, length_BN = (x[:, None] for x in (ids_BNT, log_probs_BNT, score_BN, length_BN))
    after_BNT = np.arange(ids_BNT.shape[2]) >= length_BN[..., None]
    assert (ids_BNT[after_BNT] == PAD).all()
    assert (log_probs_BNT[after_BNT] == 0).all()
    assert not np.isin(ids_BNT[~after_BNT], [PAD, BOS]).any()
    return [
        [(float(s), tuple(ids[:n].tolist())) for s, ids, n in zip(*sentence) if s > -np.inf]
        for sentence in zip(score_BN, ids_BNT, length_BN)
    ]


def assert_same(found: list[tuple[float, tuple]], expected: list[tuple[float, tuple]]) -> None:
    assert [ids for _, ids in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-4, atol=1e-5)


def beam(beams: int, alpha: float = 1.0, **options) -> Beam:
    return Beam(beams, penalty.gnmt(alpha), **options)


def play(table_BTV, search=Greedy(), **rules) -> Generated:  # noqa: B008
    """Search over logits by position, whatever was generated before.

    The table is padded to a few lengths, so that the tests share programs; the rows' limits hide it.
    """
    batch, length, _ = table_BTV.shape
    bucket = next(n for n in (1, 8, 20) if n >= length)
    table_BTV = np.pad(table_BTV, ((0, 0), (0, bucket - length), (0, 0)), constant_values=-np.inf)
    limit = rules.get("limit")
    rules = Rules(**{**rules, "limit": length if limit is None else np.minimum(limit, length)}).canonical(batch, batch)
    out = _play(table_BTV, search.canonical(batch, batch), rules)
    return out._replace(ids=out.ids[..., :length], log_probs=out.log_probs[..., :length])


@jax.jit
def _play(table_BTV, search, rules):
    def decode(tokens_RN, memory, cache):
        logits_BV = jax.lax.dynamic_index_in_dim(table_BTV, cache, axis=1, keepdims=False)
        return core.Outputs(core.per_beam(logits_BV, len(tokens_RN))[:, None], {}), cache + 1

    batch, max_len, _ = table_BTV.shape
    return search(decode, None, jnp.int32(0), batch, max_len, rules)


def table(*rows, vocab: int = 6) -> np.ndarray:
    """Logits (1, T, V) from one {token: logit} a position; every other token is impossible."""
    table_TV = np.full((len(rows), vocab), -np.inf, np.float32)
    for row_V, logits in zip(table_TV, rows):
        row_V[list(logits)] = list(logits.values())
    return table_TV[None]
