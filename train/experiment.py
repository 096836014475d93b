"""An experiment: everything that decides what a training run does, as one dataclass that a config file constructs.

Every field can be changed on the command line: ``--optimizer.learning-rate 3e-4``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, get_args, get_type_hints

from train.data import Batching, Files, Recordings, Tfds, Windows
from train.lora import Lora
from train.optim import Optimizer, Rules
from train.parallel import Parallel
from train.step import Compute
from train.tasks import TASKS
from zoo.core import EncoderOnly, ModelConfig, UserError
from zoo.decoding import Decoding
from zoo.text import Kind
from zoo.variants import check_sizes, config_to_json, fits


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """How text becomes tokens; learned from the training split when a run starts, then kept with its checkpoints.

    Attributes:
      source: "characters", "words" (what stands between white space), "bpe" or "unigram".
      target: the same for the target.
      shared: one vocabulary, learned from both sides; wants the same kind for both.
      vocab_size: most tokens of a vocabulary; 0: all characters or words, 8,000 subwords.
      min_count: leave out characters, words and merges seen less often.
      lowercase: make all text lower case.
      sentinels: tokens beyond vocab_size for the spans that the corruption "spans" takes away; T5 has 100.
    """

    source: Kind = "bpe"
    target: Kind = "bpe"
    shared: bool = False
    vocab_size: int = 0
    min_count: int = 1
    lowercase: bool = False
    sentinels: int = 0


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, and what is seen on the way.

    Attributes:
      steps: batches in all; each is an update unless ``optimizer.accumulate`` of them make one.
      label_smoothing: share of the target probability given to the other tokens.
      log_every: steps between two lines of metrics.
      eval_every: steps between two evaluations, each followed by a checkpoint.
      eval_examples: validation examples that are decoded at each evaluation; the loss is taken on all.
      samples: decoded examples shown at each evaluation.
      save_every: steps between two checkpoints; 0: at evaluations only.
      keep_last: newest checkpoints kept, beside the best one.
      max_failed_saves: checkpoints in a row that may fail to be written, on a full disk, before the run ends with exit code 3.
      max_skipped: batches in a row that may give no finite loss and gradient before the run ends with exit code 4.
      watchdog: seconds without a step after which all stacks are printed and the run ends; 0: wait for ever.
      trace: write each step's example ids and loss, exactly, to trace.jsonl.
      tensorboard: write event files for TensorBoard too.
    """

    steps: int = 10_000
    label_smoothing: float = 0.0
    log_every: int = 50
    eval_every: int = 1000
    eval_examples: int = 512
    samples: int = 3
    save_every: int = 0
    keep_last: int = 2
    max_failed_saves: int = 3
    max_skipped: int = 10
    watchdog: float = 1800.0
    trace: bool = False
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The machines of a run, each of which starts this command.

    Attributes:
      kind: "one"; "auto", told by Slurm, Open MPI, GKE or Cloud TPU; "given", by the next three fields.
      coordinator: address of the first host, host:port.
      count: how many hosts.
      index: which one this is.
      timeout: seconds without a sign of life after which a host counts as lost, and the job ends.
    """

    kind: Literal["one", "auto", "given"] = "one"
    coordinator: str = "127.0.0.1:9876"
    count: int = 1
    index: int = 0
    timeout: int = 30


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config file constructs.

    Attributes:
      model: a variant's configuration; its vocabulary sizes are filled in from the tokenizers.
      init_from: what to start from instead of random parameters: all that ``zoo.load`` reads, such as a Hugging Face directory.
        Tokenizers, decoding and model are that one's; ``model`` and ``decoding`` then say what is to differ (``train.start``).
      data: where text pairs, windows of plain text, or recordings and their texts come from.
      init_embeddings: word vectors that the embeddings of known tokens start from, scaled to the size of the random ones: a
        model of such vectors, or a file of the word2vec tool.
      tokenizers: how text becomes tokens.
      batching: how examples become batches.
      optimizer: how parameters are updated.
      lora: low-rank adapters, if those are to be trained and not the model's own parameters.
      training: how long, and what is seen on the way.
      decoding: how outputs are generated, in evaluation and afterwards.
      compute: how the same numbers are computed.
      parallel: how the work is shared among devices.
      hosts: the machines of a run.
      task: what outputs are scored by: "pronunciation" (phone and word error rate), "translation" (BLEU, chrF), "text"
        (character error rate), "speech" (word and character error rate), "language" (perplexity: outputs are drawn as samples
        alone), "classify" (accuracy, F1, area under the ROC curve) or "vectors" (the loss of telling words from noise).
      corruption: what becomes of a text that is both source and target (``train.data.corrupt``): "none" for pairs of texts,
        "mask" for masked language models, "infill" (BART) and "spans" (T5, by its tokenizer's sentinels or those that
        ``tokenizers`` asks for) for encoder-decoders.
      seed: of the initial parameters, the order of the examples, corruption and dropout.
    """

    model: ModelConfig
    data: Tfds | Files | Windows | Recordings
    init_from: str = ""
    init_embeddings: str = ""
    tokenizers: Tokenizers = Tokenizers()
    batching: Batching = Batching()
    optimizer: Optimizer = Optimizer()
    lora: Lora = Lora()
    training: Training = Training()
    decoding: Decoding = Decoding()
    compute: Compute = Compute()
    parallel: Parallel = Parallel()
    hosts: Hosts = Hosts()
    task: Literal["pronunciation", "translation", "text", "speech", "language", "classify", "vectors"] = "text"
    corruption: Literal["none", "mask", "spans", "infill"] = "none"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Command(Experiment):
    """Train a model. Repeating a command continues its run.

    Attributes:
      workdir: directory of the run: a new one, or that of the same command before.
    """

    workdir: str = ""


MOST = 2**31 - 1  # of what is counted in int32

# The least and the most of each number; ``zoo.decoding`` and ``zoo.variants`` have those of decoding and model.
BOUNDS = {
    "tokenizers.vocab_size": (0, 2**24),
    "tokenizers.min_count": (1, MOST),
    "tokenizers.sentinels": (0, 10_000),
    "batching.tokens": (1, 2**26),
    "batching.max_source_len": (0, 2**20),
    "batching.max_target_len": (1, 2**20),
    "batching.buckets": (1, 64),
    "batching.window": (1, MOST),
    "optimizer.learning_rate": (0, 1e6),
    "optimizer.warmup_steps": (0, MOST),
    "optimizer.b1": (0, 1),
    "optimizer.b2": (0, 1),
    "optimizer.eps": (0, 1),
    "optimizer.clip": (0, 1e9),
    "optimizer.weight_decay": (0, 1e6),
    "optimizer.accumulate": (1, MOST),
    "optimizer.ema": (0, 1),
    "optimizer.layer_decay": (0, 1),
    "lora.rank": (0, 2**20),
    "lora.alpha": (0, 1e6),
    "training.steps": (1, MOST),
    "training.label_smoothing": (0, 1),
    "training.log_every": (1, MOST),
    "training.eval_every": (1, MOST),
    "training.eval_examples": (1, MOST),
    "training.samples": (0, MOST),
    "training.save_every": (0, MOST),
    "training.keep_last": (1, MOST),
    "training.max_failed_saves": (1, MOST),
    "training.max_skipped": (1, MOST),
    "training.watchdog": (0, MOST),
    "compute.logits_chunk": (0, MOST),
    "parallel.fsdp": (1, MOST),
    "parallel.model": (1, MOST),
    "parallel.devices": (0, MOST),
    "hosts.count": (1, MOST),
    "hosts.index": (0, MOST),
    "hosts.timeout": (1, MOST),
    "seed": (0, MOST),
}


def check(experiment: Experiment) -> None:
    """Raises UserError for the first field whose value cannot work, before anything is prepared."""
    check_types(experiment)
    for name, (low, high) in BOUNDS.items():
        value = get(experiment, name)
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: it must be {f'at least {low}' if value < low else f'{low} to {high}'}")
    if experiment.optimizer.ema == 1:
        raise UserError("optimizer.ema is 1.0, an average that never moves: choose less, such as 0.999, or 0 for none")
    if experiment.training.steps < experiment.optimizer.accumulate:
        raise UserError(
            f"training.steps is {experiment.training.steps}, fewer batches than optimizer.accumulate wants for one update "
            f"({experiment.optimizer.accumulate}): raise training.steps"
        )
    check_sizes(experiment.model)
    experiment.decoding.search(None)  # its checks
    tokenizers = experiment.tokenizers
    if tokenizers.shared and tokenizers.source != tokenizers.target:
        raise UserError(
            f"tokenizers.shared wants one kind for both sides, not {tokenizers.source} and {tokenizers.target}: make them equal"
        )
    if experiment.model.wants_one_vocabulary and not (tokenizers.shared or experiment.init_from):
        raise UserError(
            "the model wants one vocabulary for both sides: set tokenizers.shared, or, if there is such a field, "
            'model.share_embeddings to "target"'
        )
    check_vectors(experiment)
    check_sound(experiment)
    if experiment.task not in TASKS:
        raise UserError(f"task is {experiment.task!r}: choose one of {', '.join(TASKS)}")
    model = experiment.model.build()
    masked = isinstance(model, EncoderOnly) and not (experiment.model.wants_labels or model.VECTORS)
    if masked != (experiment.corruption == "mask"):
        raise UserError(f'corruption is "{experiment.corruption}": "mask" is for masked language models, and no other is')
    if experiment.corruption in ("spans", "infill") and experiment.model.decoder_only:
        raise UserError(f'corruption is "{experiment.corruption}", which wants an encoder: set it to "none"')
    if experiment.corruption == "spans" and not (experiment.tokenizers.sentinels or experiment.init_from):
        raise UserError(
            'corruption is "spans", for which tokenizers.sentinels is 0: set it, such as to T5\'s 100, or init_from to a T5'
        )
    if experiment.model.wants_labels != (experiment.task == "classify"):
        raise UserError(
            f"task is {experiment.task!r}, which the model does not do: classify is for models of labels, and no other is"
        )
    if experiment.model.wants_labels:
        target = dataclasses.replace(experiment.model, source_vocab_size=9, target_vocab_size=9).example(1)[1]
        if target.ids.shape[1] != 1:
            raise UserError("the model tells a label of each token, but the data has one of each text: choose another head")


def check_vectors(experiment: Experiment) -> None:
    """Raises UserError unless the data, the model and the task are all of word vectors, or none is."""
    parts = {
        "data": isinstance(experiment.data, Windows),
        "model": bool(experiment.model.build().VECTORS),
        "task": experiment.task == "vectors",
    }
    if len(set(parts.values())) > 1:
        of, other = (" and ".join(name for name in parts if parts[name] is wanted) for wanted in (True, False))
        raise UserError(
            f"{of} of the experiment is for word vectors, but {other} is not: all three or none, see configs/word2vec_text.py"
        )
    if parts["data"] and (experiment.batching.pack or experiment.training.label_smoothing):
        raise UserError("word vectors are learned without batching.pack and training.label_smoothing: leave them out")


def check_sound(experiment: Experiment) -> None:
    """Raises UserError unless the data and the model are both of sound, or neither is."""
    model, sound = experiment.model.build(), isinstance(experiment.data, Recordings)
    if sound != model.SOUND:
        names = type(experiment.data).__name__, type(model).__name__
        raise UserError(
            f"data is {names[0]}, {'sound' if sound else 'text'}, but {names[1]} reads {'sound' if model.SOUND else 'text'}: "
            "both must be sound, see configs/whisper_finetune.py, or neither"
        )
    if sound and (experiment.corruption != "none" or experiment.batching.pack):
        raise UserError("sound is learned without corruption and batching.pack: leave them out")
    if sound and experiment.init_embeddings:
        raise UserError("init_embeddings is for words that are read, but the model reads sound: leave it out")


def check_types(data: Any, prefix: str = "") -> None:
    """Raises UserError for the first field of another type than it says: Python itself lets a config file set anything."""
    hints = get_type_hints(type(data))
    for field in dataclasses.fields(data):
        name, value, hint = prefix + field.name, getattr(data, field.name), hints[field.name]
        kinds = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if kinds and isinstance(value, tuple(kinds)):
            check_types(value, f"{name}.")
        elif hint == Rules:
            if not isinstance(value, tuple) or not all(is_rule(rule) for rule in value):
                raise UserError(f'{name} is {value!r}: it must hold pairs such as (".*", 1.0), with numbers from 0 to 1e6')
        elif kinds or isinstance(value, list) or not fits(list(value) if isinstance(value, tuple) else value, hint):
            raise UserError(f"{name} is {value!r}, which does not fit {getattr(hint, '__name__', hint)}")


def is_rule(rule: Any) -> bool:
    """Whether this is a (regex, factor) pair."""
    return isinstance(rule, tuple) and len(rule) == 2 and fits(rule[0], str) and fits(rule[1], float) and 0 <= rule[1] <= 1e6


def get(experiment: Experiment, name: str) -> Any:
    """``get(experiment, "training.steps")``."""
    for part in name.split("."):
        experiment = getattr(experiment, part)
    return experiment


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The whole experiment as JSON, with the classes of the model and of the data."""
    fields = dataclasses.asdict(experiment)
    fields["model"] = config_to_json(experiment.model)
    fields["data"] = {"kind": type(experiment.data).__name__, **fields["data"]}
    return json.loads(json.dumps(fields))


# A run may be resumed with other values of these: they change how it is watched and where it runs, not what it learns.
FREE = ("training", "compute", "parallel", "hosts", "decoding")
LEARNED = "training.label_smoothing"  # but not this one


def check_same(saved: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Raises UserError if a run's saved experiment differs from this one in what it learns."""
    if not isinstance(saved, dict):
        raise UserError(f"the experiment.json of {where} is no JSON object: restore it, or choose another --workdir")
    for name, before, after in differences(saved, now, FREE):
        raise UserError(
            f"{where} holds a run of another experiment, {name} was {before!r} and is {after!r} now: repeat its command, or "
            "choose another --workdir"
        )


def differences(saved: dict[str, Any], now: dict[str, Any], free: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """The fields, with both values, that two experiments differ in apart from the groups that are free to.

    A field that a saved run does not know, being older, is no difference while it is off.

    >>> differences({"seed": 1, "hosts": {"count": 1}}, {"seed": 2, "hosts": {"count": 4}, "task": ""}, ("hosts",))
    [('seed', 1, 2)]
    """
    saved, now = flat(saved), flat(now)
    names = (name for name in sorted(saved.keys() | now.keys()) if name.partition(".")[0] not in free or name == LEARNED)
    found = [(name, saved.get(name), now.get(name)) for name in names if name in saved or now[name]]
    return [each for each in found if each[1] != each[2]]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names as they are typed.

    >>> flat({"a": {"b": 1}, "model": {"fields": {"c": 2}}})
    {'a.b': 1, 'model.c': 2}
    """
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("model.fields", "model")
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out
