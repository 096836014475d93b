"""What ``training.py`` runs of torch, in a process of its own: the same models, written as torch's users write them."""

from __future__ import annotations

import json
import math
import sys

import torch
from fresh import timed
from torch import nn


class Seq2SeqTransformer(nn.Module):
    """Transformer-base with one embedding for source, target and output."""

    def __init__(self, vocab: int, d_model: int = 512):
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.transformer = nn.Transformer(d_model, 8, 6, 6, 2048, 0.1, batch_first=True)
        self.transformer.encoder.norm = self.transformer.decoder.norm = None
        self.drop = nn.Dropout(0.1)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        angle = torch.arange(512)[:, None] / 10_000 ** (torch.arange(0, d_model, 2) / d_model)
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1))

    def embed(self, ids):
        scaled = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.drop(scaled + self.positions[: ids.shape[1]])

    def forward(self, source, target):
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.transformer(self.embed(source), self.embed(target), tgt_mask=causal, tgt_is_causal=True)
        return x @ self.embedding.weight.T


class AttentionLSTM(nn.Module):
    """Luong's global attention with the "general" score over a stack of LSTMs, without input feeding."""

    def __init__(self, vocab: int, D: int = 512, layers: int = 2):
        super().__init__()
        self.source_embedding, self.target_embedding = nn.Embedding(vocab, D), nn.Embedding(vocab, D)
        self.encoder = nn.LSTM(D, D, layers, batch_first=True, dropout=0.1)
        self.decoder = nn.LSTM(D, D, layers, batch_first=True, dropout=0.1)
        self.score = nn.Linear(D, D, bias=False)
        self.combine = nn.Linear(2 * D, D, bias=False)
        self.output = nn.Linear(D, vocab, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, source, target):
        memory, state = self.encoder(self.drop(self.source_embedding(source)))
        h, _ = self.decoder(self.drop(self.target_embedding(target)), state)
        weights = (h @ self.score(memory).transpose(1, 2)).softmax(dim=-1)
        attentional = torch.tanh(self.combine(torch.cat([weights @ memory, h], dim=-1)))
        return self.output(self.drop(attentional))


class T5(nn.Module):
    def __init__(self):
        super().__init__()
        import transformers

        sizes = {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "d_kv": 64}
        config = transformers.T5Config(vocab_size=32_128, **sizes, decoder_start_token_id=0)
        self.model = transformers.T5ForConditionalGeneration(config)

    def forward(self, source, target):
        return self.model(input_ids=source, decoder_input_ids=target, use_cache=False).logits


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        import transformers

        config = transformers.BertConfig(num_labels=2, attention_probs_dropout_prob=0.0)
        self.model = transformers.BertForSequenceClassification(config)

    def forward(self, source, target):
        return self.model(input_ids=source).logits[:, None]


def without_attention_dropout(model: nn.Module) -> nn.Module:
    """The zoo drops no attention weights: the rate that torch's modules have for them is zero, so that all do the same work."""
    for module in model.modules():
        if "Attention" in type(module).__name__ and isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def main() -> None:
    system, task, (rows, S, T, vocab), steps, threads = json.loads(sys.argv[sys.argv.index("--cell") + 1])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    makers = {"transformer": Seq2SeqTransformer, "lstm": AttentionLSTM, "t5": lambda _: T5(), "bert": lambda _: Bert()}
    model = without_attention_dropout(makers[task](vocab)).train()
    source = torch.randint(4, vocab, (rows, S))
    target = torch.randint(0, 2, (rows, 1)) if task == "bert" else torch.randint(4, vocab, (rows, T))
    shifted = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    run = torch.compile(model) if system == "torch.compile" else model

    def once():
        optimizer.zero_grad()
        logits = run(source, shifted)
        nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
        optimizer.step()

    parameters = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    print(json.dumps(timed(once, steps) | {"parameters": parameters}))


if __name__ == "__main__":
    main()
