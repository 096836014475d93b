"""A generation_config.json as a ``Decoding`` and back: transformers' names for the same settings.

Lengths count differently there: ``max_length`` and ``min_length`` count what the decoder reads first as well, and that is the
whole prompt where there is no encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.checkpoint.fields import Fields
from zoo.core import ModelConfig, UserError
from zoo.decoding import Decoding

# What changes an output and has no counterpart here, with the values under which it changes nothing.
UNSUPPORTED = {
    **{"num_beam_groups": (1,), "diversity_penalty": (0.0,), "penalty_alpha": (0.0,), "guidance_scale": (1.0,)},
    **{"encoder_repetition_penalty": (1.0,), "force_words_ids": (), "constraints": ()},
    **{"sequence_bias": (), "exponential_decay_length_penalty": (), "stop_strings": (), "renormalize_logits": (False,)},
    **{"epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "top_h": (), "watermarking_config": ()},
}
EARLY = {False: "no", True: "yes", "never": "never"}
DEFAULT_MAX_LEN = 20  # transformers' own, in new tokens


def read(data: Mapping[str, Any], where: str, config: ModelConfig) -> Decoding:
    """The settings of a generation_config.json, or of a config.json from the time before.

    Raises:
      UserError: a value that cannot be, or a setting that changes outputs and that this zoo does not have.
    """
    for name, neutral in UNSUPPORTED.items():
        if (value := data.get(name)) is not None and value not in neutral:
            raise UserError(f"{name} in {where} is {value!r}, which this zoo does not do: remove it to generate without")
    fields, size = Fields(data, where), config.target_vocab_size
    beams, sample = fields.integer("num_beams", 1, 1), fields.flag("do_sample", False)
    if sample and beams > 1:
        raise UserError(f"do_sample in {where} is set and num_beams is {beams}: remove one, this zoo draws or searches")
    banned = [token for token in single_tokens(data, where) if token != config.end_id]
    banned += ids(data, "suppress_tokens", where)
    special = never(config)
    forced_end = data.get("forced_eos_token_id")
    if forced_end not in (None, config.end_id, [config.end_id]):
        raise UserError(f"forced_eos_token_id in {where} is {forced_end!r} but outputs end with {config.end_id}: remove it")
    shaped = {
        "temperature": fields.number("temperature", 1.0),
        "top_k": fields.integer("top_k", 50),
        "top_p": fields.number("top_p", 1.0),
        "min_p": fields.number("min_p", 0.0),
        "typical": fields.number("typical_p", 1.0),
    }
    return Decoding(
        beams=beams,
        penalty="huggingface",
        length_penalty=fields.number("length_penalty", 1.0),
        early_stopping=EARLY[fields.choice("early_stopping", tuple(EARLY), False)],
        n_best=fields.integer("num_return_sequences", 1, 1),
        sample=sample,
        **(shaped if sample else {}),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
        no_repeat_ngram=fields.integer("no_repeat_ngram_size", 0),
        no_repeat_source_ngram=fields.integer("encoder_no_repeat_ngram_size", 0),
        **lengths(fields, config),
        max_source_len=max(Decoding.max_source_len, 0 if config.decoder_only else getattr(config, "max_len", 0)),
        first_id=fields.token("forced_bos_token_id", size, 0) if data.get("forced_bos_token_id") is not None else -1,
        end_at_limit=forced_end is not None,
        suppress=tuple(sorted(set(banned) - special)) if special <= set(banned) else tuple(sorted(set(banned))),
        suppress_first=tuple(ids(data, "begin_suppress_tokens", where)),
        anything=not special <= set(banned),
    )


def write(decoding: Decoding, config: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a generation_config.json, with what the original file says beside them.

    Raises:
      UserError: a setting that transformers does not have.
    """
    where = "generation_config.json"
    if original and read(original, where, config) == decoding and with_ids(config, original, where) == config:
        return dict(original)
    if decoding.beams > 1 and decoding.penalty != "huggingface":
        raise UserError(
            f'decoding.penalty is {decoding.penalty!r}, which generation_config.json cannot say: set it to "huggingface"'
        )
    special = never(config)
    banned = sorted({*decoding.suppress, *(() if decoding.anything else special)})
    early = {name: value for value, name in EARLY.items()}
    settings = {
        "num_beams": decoding.beams,
        "length_penalty": decoding.length_penalty,
        "early_stopping": early.get(decoding.early_stopping, False),
        "num_return_sequences": decoding.n_best,
        "do_sample": decoding.sample,
        **({"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p} if decoding.sample else {}),
        **({"min_p": decoding.min_p, "typical_p": decoding.typical} if decoding.sample else {}),
        "repetition_penalty": decoding.repetition_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
        "encoder_no_repeat_ngram_size": decoding.no_repeat_source_ngram,
        **written_lengths(decoding, config),
        "forced_bos_token_id": None if decoding.first_id < 0 else decoding.first_id,
        "forced_eos_token_id": config.end_id if decoding.end_at_limit else None,
        "bad_words_ids": [[token] for token in banned] or None,
        "begin_suppress_tokens": list(decoding.suppress_first) or None,
        start_name(config): config.start_id,
        "eos_token_id": config.end_id,
        "pad_token_id": config.pad_id,
    }
    replaced = {"max_new_tokens", "min_new_tokens", "max_length", "suppress_tokens"}
    kept = {name: value for name, value in original.items() if name not in replaced}
    return {name: value for name, value in {**kept, **settings}.items() if value is not None}


def lengths(fields: Fields, config: ModelConfig) -> dict[str, int]:
    """The fewest and the most tokens of an output."""
    fewest, most = fields.integer("min_new_tokens", -1, -1) + 1, fields.integer("max_new_tokens", 0)
    if not config.decoder_only:
        most = most or max(fields.integer("max_length", DEFAULT_MAX_LEN + 1, 1) - 1, 1)
        return {"min_len": fewest or fields.integer("min_length", 0), "max_len": most}
    if not fewest and (shortest := fields.integer("min_length", 0)):
        raise UserError(f"min_length in {fields.where} is {shortest}, which counts the prompt: say min_new_tokens instead")
    total = 0 if most else fields.integer("max_length", 0)
    return {"min_len": fewest, "max_len": most or (max(total - 1, 1) if total else DEFAULT_MAX_LEN), "max_total_len": total}


def written_lengths(decoding: Decoding, config: ModelConfig) -> dict[str, int | None]:
    """The inverse."""
    if not config.decoder_only:
        return {"min_length": decoding.min_len, "max_length": decoding.max_len + 1}
    if decoding.max_total_len and decoding.max_len != max(decoding.max_total_len - 1, 1):
        raise UserError(
            f"max_len is {decoding.max_len} and max_total_len {decoding.max_total_len}, but generation_config.json has one: "
            "set max_total_len to 0"
        )
    most = {"max_length": decoding.max_total_len} if decoding.max_total_len else {"max_new_tokens": decoding.max_len}
    return {"min_length": 0, "min_new_tokens": decoding.min_len - 1 if decoding.min_len else None, **most}


def never(config: ModelConfig) -> set[int]:
    """The tokens that no output holds unless ``Decoding.anything`` is set; the last of a prompt is a token like any other."""
    return {config.pad_id, *(() if config.decoder_only else (config.start_id,))} - {config.end_id}


def start_name(config: ModelConfig) -> str:
    """What transformers calls the token that a decoder reads first."""
    return "bos_token_id" if config.decoder_only else "decoder_start_token_id"


def with_ids(config: ModelConfig, data: Mapping[str, Any], where: str) -> ModelConfig:
    """The configuration with the ids that a generation_config.json says, which go before those of config.json."""
    fields, given = Fields(data, where), {}
    for ours, theirs in {"start_id": start_name(config), "end_id": "eos_token_id", "pad_id": "pad_token_id"}.items():
        if data.get(theirs) is not None:
            given[ours] = fields.token(theirs, config.target_vocab_size)
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in given.items() if name in names})


def single_tokens(data: Mapping[str, Any], where: str) -> list[int]:
    """The ids of ``bad_words_ids``."""
    words = data.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and len(word) == 1 for word in words):
        raise UserError(f"bad_words_ids in {where} is {words!r}: this zoo suppresses single tokens, so remove longer ones")
    return ids({"bad_words_ids": [token for word in words for token in word]}, "bad_words_ids", where)


def ids(data: Mapping[str, Any], name: str, where: str) -> list[int]:
    """A list of token ids; none where it is missing."""
    found = data.get(name) or []
    if not isinstance(found, list) or not all(type(token) is int and token >= 0 for token in found):
        raise UserError(f"{name} in {where} is {found!r}: a list of token ids is wanted")
    return found
