"""The sections of a recipe. Every field has its unit and its meaning; a name that trlX has is trlX's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.config.places import FILE, FUNCTION, SOURCE
from training.config.schema import REQUIRED, setting

PPO_ENGINES = ("native", "trlx")
NATIVE = ("native",)
TRLX = ("trlx",)
SAMPLED = ("native", "trlx", "trl")


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter that is trained in place of the model's own weights (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = setting(8, "rank of the update", low=1)
    alpha: float = setting(16.0, "the update is scaled by alpha / r", above=0)
    dropout: float = setting(
        0.0, "dropout before the adapter, while training (trlX stores it and never applies it)", low=0, high=0.9
    )
    target_modules: tuple[str, ...] = setting((), "names of the modules it is put on; none takes PEFT's own choice")


@dataclass(frozen=True)
class ModelConfig:
    """The model that is tuned."""

    base: str = setting(
        REQUIRED, "folder or hub id of the language model to start from, causal or encoder-decoder", place=SOURCE
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    tokenizer: str | None = setting(None, "folder or hub id of the tokenizer; default base's own", place=SOURCE)
    model_arch_type: str | None = setting(
        None, "what base is expected to be; default whatever it is", choices=("causal", "seq2seq"), engines=TRLX
    )
    num_layers_unfrozen: int = setting(
        -1, "the last so many blocks are trained and all before them frozen; -1 trains everything", low=-1
    )
    lora: LoraConfig | None = setting(None, "train a low-rank adapter instead of the weights")


@dataclass(frozen=True)
class PromptsConfig:
    """Where prompts come from: the first words of texts of files or a dataset, or of what is passed in Python."""

    files: tuple[str, ...] = setting((), "text, .csv, .tsv, .jsonl or .parquet files, read in this order", place=FILE)
    dataset: str | None = setting(
        None, "hub id, or folder, of a dataset that `datasets` loads, instead of files", place=SOURCE
    )
    dataset_config: str | None = setting(None, "configuration of that dataset")
    splits: tuple[str, ...] = setting(("train",), "splits of that dataset, read in this order")
    column: str | None = setting(
        None, "column that holds the texts: a name, or a number from 0 in a file without header"
    )
    unit: str = setting("line", "what one text is in a text file", choices=("line", "sentence"))
    words: int = setting(4, "words kept of each text, split at white space; 0 keeps all of it", low=0)
    prefix: str = setting("", "put before every prompt, such as an instruction for T5")
    train: int = setting(0, "most prompts to train on; 0 takes all that are not held out", low=0)
    heldout: int = setting(64, "prompts held out for the evaluation, never trained on", low=1)


@dataclass(frozen=True)
class ClassifierConfig:
    """A sequence classifier to be trained as the reward model."""

    files: Mapping[str, str] = setting(REQUIRED, "text file of each label, one text a line, by its name", place=FILE)
    init: str | None = setting(
        None, "causal language model whose backbone it starts from; default model.base", place=SOURCE
    )
    epochs: int = setting(3, "passes over the training texts", low=1)
    batch_size: int = setting(32, "texts in a step", low=1)
    learning_rate: float = setting(3e-4, "peak learning rate of AdamW; linear warm-up over 10 %, linear decay", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay of AdamW", low=0)
    max_length: int = setting(64, "tokens kept of each text", low=2)
    heldout: float = setting(0.1, "fraction of the texts held out for the accuracy in card.json", above=0, high=0.5)


@dataclass(frozen=True)
class TermConfig:
    """One term of a weighted sum of rewards: a stored reward model or a function."""

    weight: float = setting(1.0, "what its score is multiplied by")
    model: str | None = setting(None, "folder or hub id of a sequence classifier", place=SOURCE)
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    label: str | None = setting(None, "the label that is rewarded; may be left out of a model with one output")
    output: str = setting(
        "probability",
        "what of the label counts; probability is softmax, or sigmoid where the model says that labels do not exclude"
        " each other",
        choices=("probability", "softmax", "sigmoid", "logit"),
    )
    function: str | None = setting(
        None, "a Python function as package.module:name, called as trlX calls a reward_fn", place=FUNCTION
    )


@dataclass(frozen=True)
class RewardConfig:
    """What is rewarded: a stored model, one trained first, a function, or a weighted sum; none for a callable."""

    model: str | None = setting(None, "folder or hub id of a sequence classifier", place=SOURCE)
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    label: str | None = setting(None, "the label that is rewarded; may be left out of a model with one output")
    output: str = setting(
        "probability",
        "what of the label is the reward; probability is softmax, or sigmoid where the model says that labels do not"
        " exclude each other",
        choices=("probability", "softmax", "sigmoid", "logit"),
    )
    reads: str = setting(
        "sample", "what a reward model reads: prompt and response, or the response", choices=("sample", "output")
    )
    batch_size: int = setting(64, "texts scored at a time", low=1)
    function: str | None = setting(
        None, "a Python function as package.module:name, called as trlX calls a reward_fn", place=FUNCTION
    )
    terms: Mapping[str, TermConfig] | None = setting(None, "the reward is the weighted sum of these terms, by name")
    classifier: ClassifierConfig | None = setting(None, "train this classifier first and use it")


@dataclass(frozen=True)
class GenerateConfig:
    """How responses are sampled, in rollouts and in the evaluation."""

    max_new_tokens: int = setting(24, "most tokens in a response, the end token included", low=1)
    temperature: float = setting(1.0, "divides the logits; PPO assumes 1", above=0)
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all, as PPO assumes", low=0)
    top_p: float = setting(1.0, "keep the likeliest tokens up to this probability; 1 keeps all", above=0, high=1)
    ignore_end: bool = setting(False, "no token ends a response: every one has max_new_tokens", engines=PPO_ENGINES)


@dataclass(frozen=True)
class TrainConfig:
    """The run: engine, seed, length, optimiser and what is written."""

    engine: str = setting("native", "what trains", choices=("native", "trlx", "trl"))
    seed: int = setting(0, "seed of prompts, sampling, minibatches and initial values", low=0, high=2**63 - 1)
    total_steps: int = setting(800, "optimiser steps", low=1)
    epochs: int = setting(0, "rounds of rollouts at most; 0 leaves it to total_steps", low=0, engines=TRLX)
    seq_length: int = setting(0, "most tokens of prompt and response together; 0 sets no limit", low=0, engines=TRLX)
    batch_size: int = setting(32, "samples in an optimiser step", low=1)
    minibatch_size: int = setting(
        0, "samples in one backward pass, whose gradients add up to a step's; 0 takes batch_size", low=0
    )
    learning_rate: float = setting(1e-4, "peak learning rate of the optimiser", above=0)
    value_learning_rate: float | None = setting(
        None,
        "learning rate of the value head, which starts from nothing; default learning_rate",
        above=0,
        engines=NATIVE,
    )
    optimizer: str = setting("adam", "optimiser; adamw decays weights decoupled", choices=("adam", "adamw"))
    beta1: float = setting(0.9, "decay of Adam's first moment", low=0, high=1)
    beta2: float = setting(0.999, "decay of Adam's second moment", low=0, high=1)
    eps: float = setting(1e-8, "added to Adam's denominator", above=0)
    weight_decay: float = setting(0.0, "weight decay of the optimiser", low=0)
    scheduler: str = setting("constant", "course of the learning rate", choices=("constant", "linear", "cosine"))
    eta_min: float = setting(0.0, "learning rate at the end of a linear or cosine course", low=0)
    scheduler_steps: int = setting(
        0, "steps that a linear or cosine course takes (trlX's T_max); 0 takes total_steps", low=0, engines=TRLX
    )
    max_grad_norm: float = setting(
        1.0, "the gradient is scaled down to this 2-norm", above=0, engines=("native", "trl")
    )
    dtype: str = setting(
        "float32",
        "arithmetic of the forward pass; the weights stay float32",
        choices=("float32", "bfloat16"),
        engines=("native", "trl"),
    )
    kl_limit: float = setting(10.0, "a run whose KL exceeds this (nats per response token) stops as diverged", above=0)
    eval_interval: int = setting(0, "steps between evaluations on the held-out prompts; 0 only at start and end", low=0)
    eval_samples: int = setting(4, "samples of each held-out prompt in the evaluation", low=1)
    checkpoint_interval: int = setting(
        0, "steps between stored checkpoints, each a loadable model; 0 stores none", low=0
    )
    state_interval: int = setting(
        10, "rounds between stored states, from which a killed run goes on; 0 stores none", low=0, engines=NATIVE
    )
    trackers: tuple[str, ...] = setting(
        (), "experiment trackers that accelerate logs to", choices=("tensorboard", "wandb", "trackio")
    )
    store_base: bool = setting(False, "keep a copy of the base model in the pair's folder")
    store_reward: bool = setting(False, "keep a copy of the reward model in the pair's folder")
    timings: bool = setting(True, "write samples/s to metrics.jsonl; without it two runs give the same bytes")


@dataclass(frozen=True)
class NullsConfig:
    """What is trained beside the pair for the nulls of every analysis."""

    shuffled: int = setting(0, "null runs whose scores are permuted among the samples of each round", low=0)
    unrelated: int = setting(0, "null runs toward another reward: another label, or the share of one letter", low=0)
    replicates: int = setting(0, "runs of the same recipe with other seeds", low=0)


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347); the names are trlX's."""

    num_rollouts: int = setting(128, "samples drawn before each round of optimiser steps", low=1)
    chunk_size: int = setting(128, "samples drawn and scored at a time (memory only: no result depends on it)", low=1)
    ppo_epochs: int = setting(4, "passes over the rollouts in each round", low=1)
    init_kl_coef: float = setting(0.05, "weight of the per-token KL penalty to the base, reward per nat", low=0)
    target: float | None = setting(
        None, "KL of a whole response, in nats, that the penalty's weight is steered to; unset keeps it fixed", above=0
    )
    horizon: int = setting(10000, "samples over which the weight is steered (Ziegler et al. 2019, eq. 4)", low=1)
    gamma: float = setting(1.0, "discount per token", above=0, high=1)
    lam: float = setting(0.95, "lambda of generalised advantage estimation", low=0, high=1)
    cliprange: float = setting(0.2, "clip range of the probability ratio", above=0)
    cliprange_value: float = setting(0.2, "clip range of the value head's change", above=0)
    vf_coef: float = setting(1.0, "weight of the value loss", low=0)
    scale_reward: str = setting(
        "none",
        "divide scores by a standard deviation: of all scores so far (running) or of the first round (ref)",
        choices=("none", "running", "ref"),
    )
    ref_mean: float | None = setting(
        None, "subtracted from the scores with scale_reward = ref (by trlX never); default nothing"
    )
    ref_std: float | None = setting(
        None, "standard deviation for scale_reward = ref; default the first round's", above=0
    )
    cliprange_reward: float = setting(
        10.0, "scores are clipped to plus or minus this, after scaling (by trlX before it)", above=0
    )


@dataclass(frozen=True)
class GRPOConfig:
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300), by TRL."""

    num_generations: int = setting(8, "responses to each prompt, among which rewards are compared", low=2)
    num_iterations: int = setting(1, "passes over each batch of samples", low=1)
    beta: float = setting(0.05, "weight of the KL penalty to the base", low=0)
    epsilon: float = setting(0.2, "clip range of the probability ratio", above=0)
    scale_rewards: str = setting(
        "group", "standard deviation that advantages are divided by", choices=("group", "batch", "none")
    )
    loss_type: str = setting(
        "dapo", "how TRL averages the loss over tokens", choices=("grpo", "bnpo", "dr_grpo", "dapo")
    )


@dataclass(frozen=True)
class RLOOConfig:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740), by TRL."""

    num_generations: int = setting(4, "responses to each prompt; the others' mean reward is each one's baseline", low=2)
    num_iterations: int = setting(1, "passes over each batch of samples", low=1)
    beta: float = setting(0.05, "weight of the KL penalty to the base", low=0)
    epsilon: float = setting(0.2, "clip range of the probability ratio", above=0)
    normalize_advantages: bool = setting(False, "centre and scale advantages within a batch")


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), by TRL."""

    files: tuple[str, ...] = setting(
        (),
        "preference pairs: .jsonl or .jsonl.gz with chosen and rejected (and prompt, or one shared beginning)",
        place=FILE,
    )
    beta: float = setting(0.1, "weight of the implicit KL penalty", above=0)
    loss_type: str = setting("sigmoid", "loss of a pair", choices=("sigmoid", "hinge", "ipo"))
    label_smoothing: float = setting(0.0, "assumed share of swapped pairs", low=0, high=0.5)


ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "ppo": PPO_ENGINES,
    "grpo": ("trl",),
    "rloo": ("trl",),
    "dpo": ("trl",),
}
"""The sections of which a recipe has exactly one, and the engines that run them."""
