"""Makes the golden files of test_parity.py: each model written a second time, in PyTorch, from the papers' equations.

    python tests/golden/make_golden.py

wants torch and numpy alone, and imports nothing of the zoo, so that the two implementations cannot share a mistake. Every
recurrent model reads each sentence by itself, unpadded: what a padded batch has to equal is then beyond doubt. The
mathematics runs in float64 on float32 parameters; the files are float32, with the keys

    param:NAME  in:NAME  out:NAME  grad:NAME (of the loss)
"""

from __future__ import annotations

import sys
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


def to_numpy(x: torch.Tensor) -> np.ndarray:
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
}


def main(directory: Path) -> None:
    for seed, (name, make) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        np.savez_compressed(directory / f"{name}.npz", **{key: to_numpy(value) for key, value in make().items()})
        print(f"{name}.npz  {(directory / f'{name}.npz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
