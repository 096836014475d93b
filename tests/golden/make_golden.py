"""Makes the golden files: each model a second time, in PyTorch, from the papers' equations; other systems' searches.

    python tests/golden/make_golden.py [DIRECTORY [NAME ...]]

wants torch and numpy alone for the models, and imports nothing of the zoo, so that the two implementations cannot share a
mistake. Every recurrent model reads each sentence by itself, unpadded: what a padded batch has to equal is then beyond
doubt. The mathematics runs in float64 on float32 parameters; the files are float32, with the keys

    param:NAME  in:NAME  out:NAME  grad:NAME (of the loss)

The files generate_*.npz hold what the beam searches of other systems return, by their own code: transformers (which must be
installed), fairseq (its unpacked wheel or sdist, the directory in the environment variable FAIRSEQ), Marian (the compiled
module of pymarian must be importable). A system that is not there is skipped.

A name of a case in families/, such as "marian", makes the directory of a tiny pretrained model by transformers; without
names all are made where it is installed.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import os
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

BOS, EOS, FIRST = 1, 2, 4
SOURCE_WORDS, TARGET_WORDS = 19, 21
EMBED, HIDDEN = 10, 12
SOURCE_LENGTHS, TARGET_LENGTHS = (7, 1, 4), (5, 6, 2)

torch.set_default_dtype(torch.float64)


# --- Cells ------------------------------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """One layer of torch's own, over one sentence in either direction: outputs (N, D), and the final state."""

    def __init__(self, layer: type[nn.RNNBase]):
        super().__init__()
        self.cell = layer(EMBED, HIDDEN)

    def forward(self, x, reverse):
        outputs, state = self.cell(x.flip(0) if reverse else x)
        h, c = state if isinstance(state, tuple) else (state, None)
        return outputs.flip(0) if reverse else outputs, h[0], None if c is None else c[0]


def cell_case(layer: type[nn.RNNBase]) -> dict[str, torch.Tensor]:
    """Outputs and final states of three sentences, both ways; the loss weighs every output and state at random."""
    model, lengths = randomised(OneLayer(layer)), SOURCE_LENGTHS
    x = rounded(torch.randn(len(lengths), max(lengths), EMBED))
    arrays, loss = {"in:x": x, "in:mask": mask(lengths)}, 0.0
    for direction in ("forward", "backward"):
        rows = [model(x[i, :n], direction == "backward") for i, n in enumerate(lengths)]
        results = {"h": padded([row[0] for row in rows]), "last_h": torch.stack([row[1] for row in rows])}
        if rows[0][2] is not None:
            results["last_c"] = torch.stack([row[2] for row in rows])
        for name, value in results.items():
            weight = rounded(torch.randn(value.shape))
            loss = loss + (weight * value).sum() / value.numel()
            arrays |= {f"out:{direction}_{name}": value, f"in:{direction}_{name}_weight": weight}
    return arrays | gradients(model, loss)


# --- Models: each reads one unpadded sentence, source (S,) and the tokens so far (T,), and gives logits (T, V) ----------


class Bridge(nn.Module):
    """Encoder and decoder of nn.RNN or nn.LSTM, the final states passed layer by layer (Sutskever et al. 2014, section 2)."""

    def __init__(self, rnn: type[nn.RNNBase], layers: int, reverse: bool):
        super().__init__()
        self.reverse = reverse
        self.source_embedding = nn.Embedding(SOURCE_WORDS, EMBED)
        self.target_embedding = nn.Embedding(TARGET_WORDS, EMBED)
        self.encoder = rnn(EMBED, HIDDEN, layers)
        self.decoder = rnn(EMBED, HIDDEN, layers)
        self.output = nn.Linear(HIDDEN, TARGET_WORDS)

    def forward(self, source, target):
        _, state = self.encoder(self.source_embedding(source.flip(0) if self.reverse else source))
        h, _ = self.decoder(self.target_embedding(target), state)
        return self.output(h), {}


class Gru(nn.Module):
    """Cho et al. 2014, equations 5 to 8; the rows of each matrix are for r, z and the candidate.

    What else enters the gates ("context") is added to the candidate or, in Cho's decoder, reset with U h (appendix A.1.2).
    """

    def __init__(self, reset_context: bool = False):
        super().__init__()
        self.reset_context = reset_context
        self.input = nn.Linear(EMBED, 3 * HIDDEN)
        self.recurrent = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)

    def forward(self, x, h, context=(0, 0, 0)):
        (W_r, W_z, W), (b_r, b_z, b) = self.input.weight.chunk(3), self.input.bias.chunk(3)
        (U_r, U_z, U), (c_r, c_z, c) = self.recurrent.weight.chunk(3), context
        r = torch.sigmoid(W_r @ x + U_r @ h + c_r + b_r)
        z = torch.sigmoid(W_z @ x + U_z @ h + c_z + b_z)
        inside = r * (U @ h + c) if self.reset_context else U @ (r * h) + c
        candidate = torch.tanh(W @ x + inside + b)
        return z * h + (1 - z) * candidate


def maxout(x):
    """max(x_1, x_2), max(x_3, x_4), ..."""
    return torch.maximum(x[0::2], x[1::2])


class Cho(nn.Module):
    """Cho et al. 2014, appendix A."""

    def __init__(self, units: int = 7):
        super().__init__()
        self.source_embedding = nn.Embedding(SOURCE_WORDS, EMBED)
        self.target_embedding = nn.Embedding(TARGET_WORDS, EMBED)
        self.encoder, self.decoder = Gru(), Gru(reset_context=True)
        self.summary = nn.Linear(HIDDEN, HIDDEN)
        self.initial = nn.Linear(HIDDEN, HIDDEN)
        self.summary_gates = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.readout_state = nn.Linear(HIDDEN, 2 * units)
        self.readout_token = nn.Linear(EMBED, 2 * units, bias=False)
        self.readout_summary = nn.Linear(HIDDEN, 2 * units, bias=False)
        self.output = nn.Linear(units, TARGET_WORDS)

    def forward(self, source, target):
        h = torch.zeros(HIDDEN)
        for x in self.source_embedding(source):
            h = self.encoder(x, h)
        c = torch.tanh(self.summary(h))
        h, logits = torch.tanh(self.initial(c)), []
        for y in self.target_embedding(target):
            h = self.decoder(y, h, self.summary_gates(c).chunk(3))
            logits.append(self.output(maxout(self.readout_state(h) + self.readout_token(y) + self.readout_summary(c))))
        return torch.stack(logits), {}


class Bahdanau(nn.Module):
    """Bahdanau et al. 2015, appendix A.1.2, A.2.1 and A.2.2; its update gate z_i is 1 - z of the Gru above."""

    def __init__(self, attention: int = 9, units: int = 7):
        super().__init__()
        self.source_embedding = nn.Embedding(SOURCE_WORDS, EMBED)
        self.target_embedding = nn.Embedding(TARGET_WORDS, EMBED)
        self.forward_cell, self.backward_cell, self.decoder_cell = Gru(), Gru(), Gru()
        self.initial = nn.Linear(HIDDEN, HIDDEN)
        self.context_gates = nn.Linear(2 * HIDDEN, 3 * HIDDEN, bias=False)
        self.query = nn.Linear(HIDDEN, attention, bias=False)
        self.keys = nn.Linear(2 * HIDDEN, attention)
        self.energy = nn.Parameter(torch.empty(attention))
        self.readout_state = nn.Linear(HIDDEN, 2 * units)
        self.readout_token = nn.Linear(EMBED, 2 * units, bias=False)
        self.readout_context = nn.Linear(2 * HIDDEN, 2 * units, bias=False)
        self.output = nn.Linear(units, TARGET_WORDS)

    def forward(self, source, target):
        forward, backward = [torch.zeros(HIDDEN)], [torch.zeros(HIDDEN)]
        x = self.source_embedding(source)
        for j in range(len(x)):
            forward.append(self.forward_cell(x[j], forward[-1]))
            backward.append(self.backward_cell(x[len(x) - 1 - j], backward[-1]))
        h = torch.stack([torch.cat(pair) for pair in zip(forward[1:], backward[:0:-1])])
        s, logits, weights = torch.tanh(self.initial(backward[-1])), [], []
        for y in self.target_embedding(target):
            e = torch.stack([self.energy @ torch.tanh(self.query(s) + self.keys(h_j)) for h_j in h])
            alpha = torch.exp(e) / torch.exp(e).sum()
            c = alpha @ h
            logits.append(self.output(maxout(self.readout_state(s) + self.readout_token(y) + self.readout_context(c))))
            weights.append(alpha)
            s = self.decoder_cell(y, s, self.context_gates(c).chunk(3))
        return torch.stack(logits), {"cross": torch.stack(weights)[None]}


class Luong(nn.Module):
    """Luong et al. 2015, equations 5 to 10 and section 3.3, around nn.LSTM."""

    def __init__(self, score: str, alignment: str, feeding: bool, layers: int = 2, window: int = 2, reverse: bool = False):
        super().__init__()
        self.score_by, self.alignment, self.feeding, self.window, self.reverse = score, alignment, feeding, window, reverse
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)  # noqa: E731
        self.source_embedding = nn.Embedding(SOURCE_WORDS, EMBED)
        self.target_embedding = nn.Embedding(TARGET_WORDS, EMBED)
        self.encoder = nn.LSTM(EMBED, HIDDEN, layers)
        self.decoder = nn.LSTM(EMBED, HIDDEN, layers)
        if feeding:
            self.feed_gates = linear(HIDDEN, 4 * HIDDEN)  # the columns of the first layer's weight_ih that read h~
        if score != "dot":
            self.keys = linear(HIDDEN, HIDDEN)
        if score == "concat":
            self.query = linear(HIDDEN, HIDDEN)
            self.energy = nn.Parameter(torch.empty(HIDDEN))
        if alignment == "local-p":
            self.predict_hidden = linear(HIDDEN, HIDDEN)
            self.predict_energy = nn.Parameter(torch.empty(HIDDEN))
        self.combine = linear(2 * HIDDEN, HIDDEN)
        self.output = linear(HIDDEN, TARGET_WORDS)

    def score(self, h, h_s):
        """Equation 8."""
        if self.score_by == "dot":
            return h @ h_s
        if self.score_by == "general":
            return h @ self.keys.weight @ h_s
        W_a = torch.cat([self.query.weight, self.keys.weight], dim=1)
        return self.energy @ torch.tanh(W_a @ torch.cat([h, h_s]))

    def align(self, h, t, states):
        """The weights of each source state: equation 7, or those of section 3.2."""
        S, D = len(states), self.window
        p = float(t)
        if self.alignment == "local-p":
            p = S * torch.sigmoid(self.predict_energy @ torch.tanh(self.predict_hidden(h)))
        inside = [s for s in range(S) if self.alignment == "global" or p - D <= s <= p + D]
        weights = torch.zeros(S)
        if inside:
            weights[inside] = torch.softmax(torch.stack([self.score(h, states[s]) for s in inside]), dim=0)
        if self.alignment == "local-p":
            sigma = D / 2
            weights = weights * torch.exp(-((torch.arange(S) - p) ** 2) / (2 * sigma**2))
        return weights

    def step(self, x, state):
        """One step of the decoder; x is the first layer's share of the gates beside the recurrent one."""
        H, C = [], []
        for i, (h, c) in enumerate(zip(*state)):
            W, U, b, d = (getattr(self.decoder, f"{name}_l{i}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            i_, f, g, o = ((x if i == 0 else W @ x) + U @ h + b + d).chunk(4)
            C.append(torch.sigmoid(f) * c + torch.sigmoid(i_) * torch.tanh(g))
            H.append(torch.sigmoid(o) * torch.tanh(C[-1]))
            x = H[-1]
        return x, (H, C)

    def forward(self, source, target):
        x = self.source_embedding(source)
        states, state = self.encoder(x.flip(0) if self.reverse else x)
        states = states.flip(0) if self.reverse else states
        attentional, logits, all_weights = torch.zeros(HIDDEN), [], []
        for t, y in enumerate(self.target_embedding(target)):
            gates = self.decoder.weight_ih_l0 @ y
            h, state = self.step(gates + self.feed_gates(attentional) if self.feeding else gates, state)
            weights = self.align(h, t, states)
            attentional = torch.tanh(self.combine(torch.cat([weights @ states, h])))
            logits.append(self.output(attentional))
            all_weights.append(weights)
        return torch.stack(logits), {"cross": torch.stack(all_weights)[None]}


def model_case(model: nn.Module, scale: float = 0.7) -> dict[str, torch.Tensor]:
    """Logits and attention of three sentences, each by itself; the loss is the cross-entropy a sentence."""
    model = randomised(model, scale)
    source, target = sentences(SOURCE_LENGTHS, SOURCE_WORDS), sentences(TARGET_LENGTHS, TARGET_WORDS)
    rows = [model(s, torch.cat([torch.tensor([BOS]), t[:-1]])) for s, t in zip(source, target)]
    logits = [row[0] for row in rows]
    loss = cross_entropy(torch.cat(logits), torch.cat(target), reduction="sum") / len(rows)
    arrays = {f"out:attention:{name}": padded([row[1][name] for row in rows]) for name in rows[0][1]}
    return arrays | batch(source, target) | {"out:logits": padded(logits)} | gradients(model, loss)


# --- Transformer ------------------------------------------------------------------------------------------------------

WIDTH, FEED_FORWARD, HEADS, MAX_LEN = 16, 24, 4, 9


class Transformer(nn.Module):
    """torch's encoder and decoder layers between embeddings times sqrt(D) with positions, and the output product."""

    def __init__(self, norm: str, positions: str, share: str, layers: int):
        super().__init__()
        embed = lambda size: nn.Embedding(size, WIDTH)  # noqa: E731
        self.positions, self.share = positions, share
        if share == "all":
            self.embedding = embed(TARGET_WORDS)
        else:
            self.source_embedding, self.target_embedding = embed(SOURCE_WORDS), embed(TARGET_WORDS)
        if positions == "learned":
            self.source_positions, self.target_positions = embed(MAX_LEN), embed(MAX_LEN)
        if share == "none":
            self.output = nn.Linear(WIDTH, TARGET_WORDS, bias=False)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre"}
        final = (lambda: nn.LayerNorm(WIDTH)) if norm == "pre" else lambda: None
        self.transformer = nn.Transformer(
            custom_encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, **options), layers, final(), enable_nested_tensor=False
            ),
            custom_decoder=nn.TransformerDecoder(
                nn.TransformerDecoderLayer(WIDTH, HEADS, FEED_FORWARD, **options), layers, final()
            ),
            **options,
            d_model=WIDTH,
            nhead=HEADS,
        )

    def table(self, side):
        return self.embedding if self.share == "all" else getattr(self, f"{side}_embedding")

    def embed(self, side, ids):
        if self.positions == "learned":
            position = getattr(self, f"{side}_positions").weight[: ids.shape[1]]
        else:  # section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(the same)
            position = torch.empty(ids.shape[1], WIDTH)
            for pos in range(ids.shape[1]):
                for i in range(WIDTH // 2):
                    angle = torch.tensor(pos / 10_000 ** (2 * i / WIDTH))
                    position[pos, 2 * i], position[pos, 2 * i + 1] = torch.sin(angle), torch.cos(angle)
        return self.table(side)(ids) * WIDTH**0.5 + position

    def forward(self, source, source_padding, target):
        memory = self.transformer.encoder(self.embed("source", source), src_key_padding_mask=source_padding)
        seen, last = {}, self.transformer.decoder.layers[-1].multihead_attn
        handle = last.register_forward_pre_hook(lambda _, args, kwargs: seen.update(query=args[0]), with_kwargs=True)
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        h = self.transformer.decoder(
            self.embed("target", target), memory, tgt_mask=future, memory_key_padding_mask=source_padding
        )
        handle.remove()
        _, weights = last(seen["query"], memory, memory, key_padding_mask=source_padding, average_attn_weights=False)
        logits = self.output(h) if self.share == "none" else h @ self.table("target").weight.T
        return logits, {f"decoder_{len(self.transformer.decoder.layers) - 1}/cross": weights}


def transformer_case(norm: str, positions: str, share: str, layers: int = 2) -> dict[str, torch.Tensor]:
    """Logits and one layer's attention of a right-padded batch; the loss is the cross-entropy a sentence."""
    model = randomised(Transformer(norm, positions, share, layers))
    source_words = TARGET_WORDS if share == "all" else SOURCE_WORDS
    source, target = sentences(SOURCE_LENGTHS, source_words), sentences(TARGET_LENGTHS, TARGET_WORDS)
    real = mask(TARGET_LENGTHS)
    tokens = padded([torch.cat([torch.tensor([BOS]), t[:-1]]) for t in target])
    logits, attention = model(padded(source), ~mask(SOURCE_LENGTHS), tokens)
    loss = cross_entropy(logits[real], torch.cat(target), reduction="sum") / len(target)
    arrays = {f"out:attention:{name}": value * real[:, None, :, None] for name, value in attention.items()}
    return arrays | batch(source, target) | {"out:logits": logits * real[..., None]} | gradients(model, loss)


# --- Searches of other systems ----------------------------------------------------------------------------------------

WORDS, TRANSLATION_WIDTH, TRANSLATION_LAYERS, LONGEST_SOURCE, TRANSLATION_POSITIONS = 60, 32, 2, 12, 32
END, START = 0, WORDS - 1  # as in Marian's checkpoints, where the padding id is also what the decoder reads first
LIMIT, SENTENCES = 20, 200

BEAM = {"num_beams": 4}
TRANSFORMERS_SETTINGS = {
    "greedy": {},
    "greedy_processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
    **{
        f"beam_{length_penalty}_{str(early_stopping).lower()}": BEAM
        | {"length_penalty": length_penalty, "early_stopping": early_stopping}
        for length_penalty in (-1.0, 0.0, 0.6, 1.0, 2.0)
        for early_stopping in (False, True, "never")
    },
    "beam_n_best": BEAM | {"num_return_sequences": 4},
    "beam_repetition_penalty": BEAM | {"repetition_penalty": 1.3},
    "beam_no_repeat_ngram": BEAM | {"no_repeat_ngram_size": 2},
    "beam_min_new_tokens": BEAM | {"min_new_tokens": 5},
    "beam_bad_words": BEAM | {"bad_words_ids": [[18], [41]]},
    "beam_forced_bos": BEAM | {"forced_bos_token_id": 7},
    "beam_forced_eos": BEAM | {"forced_eos_token_id": END},
}


@contextlib.contextmanager
def single_precision():
    """These systems compute in torch's default dtype, and on one thread give the same file each time."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def translation_sources(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged random sources without an end token, right-padded: ids and mask."""
    real = mask([LONGEST_SOURCE, *torch.randint(1, LONGEST_SOURCE + 1, (count - 1,)).tolist()])
    ids = torch.randint(1, START, real.shape)
    return ids.masked_fill(~real, START), real


def translation_target(source: list[int]) -> list[int]:
    """Each word renamed and said 0, 1 or 2 times; a fifth of the words are noise, so that other words stay likely."""
    words = [(7 * word) % (START - 1) + 1 for word in source for _ in range(word % 3)]
    return [word if torch.rand(()) > 0.2 else int(torch.randint(1, START, ())) for word in words] + [END]


def marian_positions() -> torch.Tensor:
    """Marian's sinusoids, sines then cosines: the slowest divides by 10000 exactly, where transformers stops a step before."""
    half = TRANSLATION_WIDTH // 2
    angle = torch.arange(TRANSLATION_POSITIONS)[:, None] * 10_000 ** -(torch.arange(half) / (half - 1))
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


def trained_marian(positions: torch.Tensor | None = None, steps: int = 100):
    """A tiny MarianMTModel after seconds of training, since a random one ends either at once or never. No output bias.

    The row of the start token stays 0, as in Marian's checkpoints. The parameters are exact in float16, to keep the file small.
    """
    from transformers import MarianConfig, MarianMTModel

    sizes = {"layers": TRANSLATION_LAYERS, "attention_heads": HEADS, "ffn_dim": 2 * TRANSLATION_WIDTH}
    config = MarianConfig(
        vocab_size=WORDS,
        d_model=TRANSLATION_WIDTH,
        max_position_embeddings=TRANSLATION_POSITIONS,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        pad_token_id=START,
        decoder_start_token_id=START,
        eos_token_id=END,
        forced_eos_token_id=None,
        **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()},
    )
    model = MarianMTModel(config).train()
    trained = {name: p for name, p in model.named_parameters() if "embed_positions" not in name}
    with torch.no_grad():
        if positions is not None:
            for side in (model.model.encoder, model.model.decoder):
                side.embed_positions.weight.copy_(positions)
        for name, p in trained.items():
            p.uniform_(-0.2, 0.2).add_("layer_norm" in name and name.endswith("weight"))
            if "shared" in name:
                p[START] = 0
    optimizer = torch.optim.Adam(trained.values(), lr=4e-3, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 50)
        ids, real = translation_sources(64)
        target = [torch.tensor(translation_target(row[keep].tolist())[:TRANSLATION_POSITIONS]) for row, keep in zip(ids, real)]
        labels = padded(target).masked_fill(~mask([len(row) for row in target]), -100)
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=real.long(), labels=labels).loss.backward()
        model.model.shared.weight.grad[START] = 0
        optimizer.step()
    with torch.no_grad():
        for p in trained.values():
            p.copy_(p.half().float())
    return model.eval()


def under_torch_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A MarianMTModel's parameters under the names of torch.nn.Transformer, with the sinusoids as learned positions."""
    result = {"embedding.weight": state["model.shared.weight"]}
    for side, prefix in (("encoder", "source"), ("decoder", "target")):
        result[f"{prefix}_positions.weight"] = state[f"model.{side}.embed_positions.weight"]
        for i in range(TRANSLATION_LAYERS):
            theirs, ours = f"model.{side}.layers.{i}", f"transformer.{side}.layers.{i}"
            attentions = {"self_attn": "self_attn"} | ({"encoder_attn": "multihead_attn"} if side == "decoder" else {})
            renamed = {"fc1": "linear1", "fc2": "linear2"} | {f"{a}.out_proj": f"{b}.out_proj" for a, b in attentions.items()}
            norms = [f"{name}_layer_norm" for name in (*attentions, "final")]
            renamed |= {name: f"norm{n}" for n, name in enumerate(norms, 1)}
            for kind in ("weight", "bias"):
                result |= {f"{ours}.{b}.{kind}": state[f"{theirs}.{a}.{kind}"] for a, b in renamed.items()}
                for a, b in attentions.items():
                    parts = [state[f"{theirs}.{a}.{name}_proj.{kind}"] for name in "qkv"]
                    result[f"{ours}.{b}.in_proj_{kind}"] = torch.cat(parts)
    return result


def neighbour(model):
    """The model with another sixth digit in each trained parameter."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.mul_(1 + 1e-5 * torch.randn(p.shape))
    return model


def transformers_search(model, ids: torch.Tensor, real: torch.Tensor, options: dict) -> dict[str, np.ndarray]:
    """generate's sequences (B, N, LIMIT), without the start token and filled up with the padding id, and beam scores (B, N)."""
    options = {"num_beams": 1, "num_return_sequences": 1} | options
    bad_words = [[START], *options.pop("bad_words_ids", [])]
    found = model.generate(
        ids,
        attention_mask=real.long(),
        max_new_tokens=LIMIT,
        do_sample=False,
        bad_words_ids=bad_words,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    shape = (len(ids), options["num_return_sequences"])
    sequences = np.full((*shape, LIMIT), START, np.int16)
    rows = found.sequences[:, 1:].numpy()
    sequences[..., : rows.shape[1]] = rows.reshape(*shape, -1)
    if options["num_beams"] == 1:
        return {"sequences": sequences}
    return {"sequences": sequences, "sequences_scores": found.sequences_scores.numpy().reshape(shape)}


def transformers_case() -> dict[str, torch.Tensor] | None:
    """What transformers' generate finds under each setting, all sentences in one ragged batch.

    Sentences whose sequences change with the parameters' sixth digit are left out: there the rounding decides.
    """
    if importlib.util.find_spec("transformers") is None:
        return skipped("transformers is not installed")
    import transformers

    with single_precision():
        model = trained_marian()
        ids, real = translation_sources(SENTENCES + SENTENCES // 4)
        models = [model, *(neighbour(model) for _ in range(3))]
        stable = torch.ones(len(ids), dtype=torch.bool)
        for options in TRANSFORMERS_SETTINGS.values():
            found = [transformers_search(m, ids, real, options)["sequences"] for m in models]
            stable &= torch.from_numpy(np.all([(found[0] == other).all((1, 2)) for other in found], axis=0))
        kept = stable.nonzero()[:SENTENCES, 0]
        print(f"{(~stable).sum()} of {len(ids)} sentences are left out")
        ids, real = ids[kept], real[kept]
        results = {name: transformers_search(model, ids, real, options) for name, options in TRANSFORMERS_SETTINGS.items()}
    common = {"max_new_tokens": LIMIT, "bad_words_ids": [[START]], "eos_token_id": END, "pad_token_id": START}
    arrays = {f"param:{name}": value for name, value in under_torch_names(model.state_dict()).items()}
    arrays |= {"in:source_ids": ids.numpy().astype(np.int16), "in:source_mask": real}
    arrays["in:json"] = as_json(
        system=f"transformers {transformers.__version__}",
        common=common | {"decoder_start_token_id": START},
        settings=TRANSFORMERS_SETTINGS,
    )
    return arrays | {f"out:{name}:{key}": value for name, result in results.items() for key, value in result.items()}


# The ids are those of fairseq's dictionaries. A hypothesis has at most max_len_b tokens before its end token.
FAIRSEQ_IDS = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}
FAIRSEQ_TABLES, FAIRSEQ_WORDS, FAIRSEQ_MAX = 24, 7, 5
FAIRSEQ_SETTINGS = {f"lenpen_{alpha}": {"len_penalty": alpha} for alpha in (0.0, 0.6, 1.0, 2.0)} | {
    "unnormalized": {"normalize_scores": False},
    "min_len_3": {"min_len": 3},
    "beam_2": {"beam_size": 2},
    "unk_penalty": {"unk_penalty": 1.0},
}


def import_fairseq(directory: Path):
    """fairseq.sequence_generator alone: the package itself imports what no longer installs, and the search needs none of it."""
    for name in ("fairseq", "fairseq.utils", "fairseq.data", "fairseq.data.data_utils", "fairseq.models"):
        sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    sys.modules["fairseq"].__path__ = [str(directory / "fairseq")]
    sys.modules["fairseq.models"].FairseqIncrementalDecoder = type("FairseqIncrementalDecoder", (nn.Module,), {})
    return importlib.import_module("fairseq.sequence_generator")


class Bigrams(nn.Module):
    """fairseq's view of a model whose next logits are table[sentence, previous token]; the source is the sentence's number.

    With noise, a little more is added at each step (noise[step, sentence, previous token]).
    """

    def __init__(self, table: torch.Tensor, noise: torch.Tensor | None = None):
        super().__init__()
        self.tables = table[None].repeat(FAIRSEQ_MAX + 1, 1, 1, 1) + (0 if noise is None else noise)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.forward_torchscript = lambda net_input: net_input["src_tokens"][:, 0]
        self.encoder.reorder_encoder_out = lambda sentence, order: sentence[order]
        self.decoder.forward = lambda tokens, encoder_out: (self.logits(tokens, encoder_out), None)

    def logits(self, tokens, sentence):
        return self.tables[torch.arange(tokens.shape[1]), sentence[:, None], tokens]

    def get_normalized_probs(self, outputs, log_probs, sample):
        return torch.log_softmax(outputs[0], dim=-1)


def fairseq_search(module, model: Bigrams, sentences: int, options: dict) -> dict[str, np.ndarray]:
    """Every hypothesis, best first: tokens (B, N, T), score (B, N), positional_scores (B, N, T); -inf where there are fewer."""
    ids = {name: (lambda self, i=i: i) for name, i in FAIRSEQ_IDS.items()}
    dictionary = type("Dictionary", (), ids | {"__len__": lambda self: FAIRSEQ_WORDS})()
    found = module.SequenceGenerator([model], dictionary, **options)(
        {"net_input": {"src_tokens": torch.arange(sentences)[:, None]}}
    )
    shape = (len(found), max(map(len, found)))
    tokens = np.full((*shape, FAIRSEQ_MAX + 1), FAIRSEQ_IDS["pad"], np.int16)
    positional, score = np.zeros(tokens.shape, np.float32), np.full(shape, -np.inf, np.float32)
    for i, row in enumerate(found):
        for j, hypothesis in enumerate(row):
            length = len(hypothesis["tokens"])
            tokens[i, j, :length], score[i, j] = hypothesis["tokens"], hypothesis["score"]
            positional[i, j, :length] = hypothesis["positional_scores"]
    return {"tokens": tokens, "score": score, "positional_scores": positional}


def fairseq_case() -> dict[str, torch.Tensor] | None:
    """What fairseq's SequenceGenerator returns under each setting.

    Tables whose hypotheses change with a little noise are left out: the same bigrams in another order have the same sum, and
    the rounding decides.
    """
    directory = Path(os.environ.get("FAIRSEQ", ""))
    if not (directory / "fairseq" / "sequence_generator.py").exists():
        return skipped("FAIRSEQ does not name a directory with fairseq/sequence_generator.py")
    module = import_fairseq(directory)
    common = {"beam_size": 3, "max_len_a": 0, "max_len_b": FAIRSEQ_MAX, "min_len": 1}
    with single_precision():
        table = torch.randn(20 * FAIRSEQ_TABLES, FAIRSEQ_WORDS, FAIRSEQ_WORDS) * 1.5
        models = [Bigrams(table)] + [Bigrams(table, 1e-4 * torch.randn(FAIRSEQ_MAX + 1, *table.shape)) for _ in range(6)]
        stable = np.ones(len(table), bool)
        for options in FAIRSEQ_SETTINGS.values():
            tokens = [fairseq_search(module, model, len(table), common | options)["tokens"] for model in models]
            stable &= np.all([(tokens[0] == other).all((1, 2)) for other in tokens], axis=0)
        print(f"{(~stable).sum()} of {len(table)} tables are left out")
        table = table[stable][:FAIRSEQ_TABLES]
        results = {
            name: fairseq_search(module, Bigrams(table), len(table), common | options)
            for name, options in FAIRSEQ_SETTINGS.items()
        }
    version = (directory / "fairseq" / "version.py").read_text().split('"')[1]
    facts = {"common": common, "settings": FAIRSEQ_SETTINGS, "ids": FAIRSEQ_IDS, "first": "eos"}
    arrays = {"in:table": table, "in:json": as_json(system=f"fairseq {version}", **facts)}
    return arrays | {f"out:{name}:{key}": value for name, result in results.items() for key, value in result.items()}


MARIAN_WORDS, MARIAN_UNKNOWN, MARIAN_SENTENCES = WORDS - 1, 15, 40  # Marian has no padding id; an unknown word that is likely
MARIAN_SETTINGS = {
    **{
        f"normalize_{alpha}_penalty_{penalty}": {"normalize": alpha, "word-penalty": penalty}
        for alpha in (0.0, 0.6, 1.0)
        for penalty in (0.0, 0.5)
    },
    "short": {"normalize": 1.0, "max-length-factor": 1.0},
    "fraction": {"normalize": 0.6, "max-length-factor": 0.7},
    "beam_1": {"beam-size": 1},
    "beam_6": {"beam-size": 6, "normalize": 1.0},
    "allow_unk": {"normalize": 1.0, "allow-unk": True},
}


def marian_tensors(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A MarianMTModel's parameters under Marian's names: products from the left, vectors as rows, no start token."""
    result = {"Wemb": state["model.shared.weight"][:MARIAN_WORDS], "decoder_ff_logit_out_b": torch.zeros(1, MARIAN_WORDS)}
    for side in ("encoder", "decoder"):
        for i in range(TRANSLATION_LAYERS):
            theirs, ours = f"model.{side}.layers.{i}", f"{side}_l{i + 1}"
            attentions = {"self_attn": "self"} | ({"encoder_attn": "context"} if side == "decoder" else {})
            linear = {
                f"{a}.{name}_proj": f"{b}_{{}}{name[0]}" for a, b in attentions.items() for name in ("q", "k", "v", "out")
            }
            linear |= {"fc1": "ffn_{}1", "fc2": "ffn_{}2"}
            norms = {f"{a}_layer_norm": f"{b}_Wo_ln" for a, b in attentions.items()} | {"final_layer_norm": "ffn_ffn_ln"}
            for a, b in linear.items():
                result[f"{ours}_{b.format('W')}"] = state[f"{theirs}.{a}.weight"].T
                result[f"{ours}_{b.format('b')}"] = state[f"{theirs}.{a}.bias"][None]
            for a, b in norms.items():
                result[f"{ours}_{b}_scale"] = state[f"{theirs}.{a}.weight"][None]
                result[f"{ours}_{b}_bias"] = state[f"{theirs}.{a}.bias"][None]
    return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in result.items()}


def save_marian(model, directory: Path) -> None:
    """Marian's model.npz, with the configuration as a string inside, and a vocabulary where word i is called wi."""
    config = {
        "version": "v1.12.0",
        "type": "transformer",
        "dim-vocabs": [MARIAN_WORDS, MARIAN_WORDS],
        "dim-emb": TRANSLATION_WIDTH,
        "enc-depth": TRANSLATION_LAYERS,
        "dec-depth": TRANSLATION_LAYERS,
        "transformer-heads": HEADS,
        "transformer-dim-ffn": 2 * TRANSLATION_WIDTH,
        "transformer-ffn-activation": "relu",
        "transformer-preprocess": "",
        "transformer-postprocess": "dan",
        "transformer-postprocess-emb": "d",
        "tied-embeddings-all": True,
    }
    text = json.dumps(config).encode() + b"\0"  # YAML reads JSON
    np.savez(
        directory / "model.npz", **marian_tensors(model.state_dict()), **{"special:model.yml": np.frombuffer(text, np.int8)}
    )
    names = {END: "</s>", MARIAN_UNKNOWN: "<unk>"}
    vocabulary = {names.get(i, f"w{i}"): i for i in range(MARIAN_WORDS)}
    (directory / "vocab.yml").write_text(json.dumps(vocabulary))


def marian_search(directory: Path, sources: list[list[int]], options: dict) -> dict[str, np.ndarray]:
    """Marian's n-best list, a sentence at a time, since a batch's longest source is the limit of all its sentences.

    ids (B, N, T), with the end token where Marian gave it a score, filled up with the start token; score (B, N), normalised,
    path_score (B, N), the sum, both with six digits; word_scores (B, N, T). -inf where there are fewer hypotheses.
    """
    from _pymarian import Translator

    words = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items())
    files = f"--models {directory}/model.npz --vocabs {directory}/vocab.yml {directory}/vocab.yml"
    translator = Translator(f"{files} --cpu-threads 1 --mini-batch 1 --n-best --word-scores --quiet {words}")
    found = translator.translate([" ".join(f"w{word}" for word in source) for source in sources])
    rows = [line.split(" ||| ") for row in found for line in row.split("\n")]
    shape = (len(sources), options["beam-size"], TRANSLATION_POSITIONS)
    ids, word_scores = np.full(shape, START, np.int16), np.zeros(shape, np.float32)
    score, path_score = (np.full(shape[:2], -np.inf, np.float32) for _ in range(2))
    count = [0] * len(sources)
    for number, text, scores, path, total in rows:
        i = int(number)
        j, count[i] = count[i], count[i] + 1
        tokens = [MARIAN_UNKNOWN if word == "<unk>" else int(word[1:]) for word in text.split()]
        scores = [float(value) for value in scores.split()[1:]]
        tokens += [END] * (len(scores) - len(tokens))
        ids[i, j, : len(tokens)], word_scores[i, j, : len(tokens)] = tokens, scores
        score[i, j], path_score[i, j] = float(total), float(path.split()[1])
    longest = (ids != START).sum(-1).max()
    return {
        "ids": ids[..., :longest],
        "score": score,
        "path_score": path_score,
        "word_scores": word_scores[..., :longest],
    }


def marian_case() -> dict[str, torch.Tensor] | None:
    """What Marian's decoder returns under each setting, for sources with the end token that it adds itself.

    Its layer normalisation adds 1e-9 to the variance, not 1e-5. Sentences left out as in transformers_case.
    """
    if importlib.util.find_spec("_pymarian") is None or importlib.util.find_spec("transformers") is None:
        return skipped("pymarian or transformers is not installed")
    common = {"beam-size": 3, "normalize": 0.0, "word-penalty": 0.0, "max-length-factor": 2.0}
    with single_precision(), tempfile.TemporaryDirectory() as name:
        model = trained_marian(marian_positions())
        ids, real = translation_sources(2 * MARIAN_SENTENCES)
        sources = [row[keep].tolist() for row, keep in zip(ids, real)]
        versions = [Path(name) / str(i) for i in range(4)]
        for i, directory in enumerate(versions):
            directory.mkdir()
            save_marian(model if i == 0 else neighbour(model), directory)
        stable = np.ones(len(sources), bool)
        for options in MARIAN_SETTINGS.values():
            found = [marian_search(directory, sources, common | options)["ids"] for directory in versions]
            width = max(x.shape[-1] for x in found)
            found = [np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=START) for x in found]
            stable &= np.all([(found[0] == other).all((1, 2)) for other in found], axis=0)
        print(f"{(~stable).sum()} of {len(stable)} sentences are left out")
        kept = np.flatnonzero(stable)[:MARIAN_SENTENCES]
        sources = [sources[i] for i in kept]
        results = {key: marian_search(versions[0], sources, common | options) for key, options in MARIAN_SETTINGS.items()}
    ended = [torch.tensor([*source, END]) for source in sources]
    real = mask([len(source) for source in ended])
    arrays = {f"param:{name}": value for name, value in under_torch_names(model.state_dict()).items()}
    arrays |= {"in:source_ids": to_numpy(padded(ended).masked_fill(~real, START)).astype(np.int16), "in:source_mask": real}
    facts = {"common": common, "settings": MARIAN_SETTINGS, "ids": {"eos": END, "unk": MARIAN_UNKNOWN, "start": START}}
    arrays["in:json"] = as_json(system="pymarian 1.12.42", **facts)
    return arrays | {f"out:{name}:{key}": value for name, result in results.items() for key, value in result.items()}


def as_json(**fields) -> np.ndarray:
    return np.array(json.dumps(fields))


def skipped(why: str) -> None:
    print(f"skipped: {why}")


# --- Shared -----------------------------------------------------------------------------------------------------------


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest float32 values."""
    return x.detach().float().double()


def randomised(model: nn.Module, scale: float = 0.7) -> nn.Module:
    """All parameters random, the biases too: a bias or a scale in the wrong place would not show at its initial value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale_of_norm = ".norm" in name and name.endswith("weight")
            parameter.copy_(rounded(torch.empty_like(parameter).uniform_(-scale, scale) + scale_of_norm))
    return model


def sentences(lengths, words) -> list[torch.Tensor]:
    return [torch.cat([torch.randint(FIRST, words, (n - 1,)), torch.tensor([EOS])]) for n in lengths]


def mask(lengths) -> torch.Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows of different shapes, stacked with zeros after their ends."""
    result = torch.zeros(len(rows), *np.max([row.shape for row in rows], axis=0), dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        result[(i, *map(slice, row.shape))] = row
    return result


def batch(source: list[torch.Tensor], target: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "in:source_ids": padded(source),
        "in:source_mask": mask([len(row) for row in source]),
        "in:target_ids": padded(target),
        "in:target_mask": mask([len(row) for row in target]),
    }


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parameters, and the gradient of the loss by each."""
    loss.backward()
    parameters = dict(model.named_parameters())
    return {f"param:{name}": p for name, p in parameters.items()} | {f"grad:{name}": p.grad for name, p in parameters.items()}


def to_numpy(x: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    array = x.detach().numpy()
    return array.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[array.dtype.kind])


CASES = {
    "cell_elman": lambda: cell_case(nn.RNN),
    "cell_lstm": lambda: cell_case(nn.LSTM),
    "cell_cudnn_gru": lambda: cell_case(nn.GRU),
    "elman": lambda: model_case(Bridge(nn.RNN, layers=1, reverse=False)),
    "sutskever": lambda: model_case(Bridge(nn.LSTM, layers=2, reverse=True)),
    "cho": lambda: model_case(Cho()),
    "bahdanau": lambda: model_case(Bahdanau()),
    "luong_global_dot": lambda: model_case(Luong("dot", "global", feeding=False), scale=1.3),
    "luong_global_general_feeding": lambda: model_case(Luong("general", "global", feeding=True, reverse=True), scale=1.3),
    "luong_global_concat_feeding": lambda: model_case(Luong("concat", "global", feeding=True, layers=1), scale=1.3),
    "luong_local_m_general": lambda: model_case(Luong("general", "local-m", feeding=False, window=1, layers=1), scale=1.3),
    "luong_local_p_concat_feeding": lambda: model_case(Luong("concat", "local-p", feeding=True, layers=1), scale=1.3),
    "transformer_post_sinusoidal_all": lambda: transformer_case("post", "sinusoidal", "all"),
    "transformer_pre_sinusoidal_target": lambda: transformer_case("pre", "sinusoidal", "target"),
    "transformer_pre_learned_none": lambda: transformer_case("pre", "learned", "none", layers=1),
    "generate_transformers": transformers_case,
    "generate_fairseq": fairseq_case,
    "generate_marian": marian_case,
}


def main(directory: Path, names: list[str]) -> None:
    for seed, (name, make) in enumerate(CASES.items()):
        if names and name not in names:
            continue
        torch.manual_seed(seed)
        arrays = make()
        if arrays is not None:
            np.savez_compressed(directory / f"{name}.npz", **{key: to_numpy(value) for key, value in arrays.items()})
            print(f"{name}.npz  {(directory / f'{name}.npz').stat().st_size:,} bytes")
    if importlib.util.find_spec("transformers") is None:
        return skipped("transformers is not installed, which the families need")
    torch.set_default_dtype(torch.float32)
    for path in sorted((Path(__file__).parent / "families").glob("[!_]*.py")):
        for name, make in getattr(importlib.import_module(f"families.{path.stem}"), "CASES", {}).items():
            if not names or name in names:
                torch.manual_seed(0)
                (directory / name).mkdir(exist_ok=True)
                make(directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent, sys.argv[2:])
