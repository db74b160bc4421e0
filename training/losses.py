"""The arithmetic of PPO as pure functions, under the papers' names.

Everywhere `mask` is True at response tokens up to and including the first end token; what is masked changes no value
and gets no gradient. A mean is over the unmasked tokens of the whole batch.

Sources: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation"
(arXiv:1506.02438); Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv:1707.06347); Ziegler et al.
2019, "Fine-tuning language models from human preferences" (arXiv:1909.08593); Schulman 2020, "Approximating KL
divergence" (joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(values: Float[Tensor, "sample step"], mask: Bool[Tensor, "sample step"]) -> Float[Tensor, ""]:
    """Mean over the unmasked entries; 0 where there is none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def logprobs_of(logits: Float[Tensor, "... vocab"], ids: Int[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Log-probability in nats of each token `ids` under `logits`, in float32 or better."""
    return torch.log_softmax(_at_least_float32(logits), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, " ..."]:
    """Entropy in nats of each distribution, -sum p log p, in float32 or better."""
    log_p = torch.log_softmax(_at_least_float32(logits), dim=-1)
    return -_weighted(log_p.exp(), log_p).sum(dim=-1)


def kl_estimate(logprobs_tuned: Float[Tensor, " ..."], logprobs_base: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """The k3 estimate of KL(tuned || base) in nats from tokens that tuned sampled: exp(-d) - 1 + d.

    d = log p_tuned - log p_base. It is never negative and its mean is the KL (Schulman 2020). The opposite sign of d
    would estimate something else.
    """
    d = logprobs_tuned - logprobs_base
    return torch.exp(-d) - 1 + d


def per_token_kl_penalty(
    logprobs: Float[Tensor, "sample step"],
    reference_logprobs: Float[Tensor, "sample step"],
    mask: Bool[Tensor, "sample step"],
    coefficient: float,
) -> Float[Tensor, "sample step"]:
    """The penalty added to each token's reward: -coefficient (log pi - log pi_ref), Ziegler et al. 2019, eq. 2."""
    return torch.where(mask, -coefficient * (logprobs - reference_logprobs), 0.0)


def adapted_coefficient(coefficient: float, kl: float, target: float, horizon: int, samples: int) -> float:
    """The KL penalty's weight for the next round, Ziegler et al. 2019, section 2.2.

    e = clip((kl - target) / target, -0.2, 0.2); the weight is multiplied by 1 + e samples / horizon.

    Args:
        coefficient: the weight in the round just done.
        kl: mean KL of a whole response in that round, nats.
        target: what it is steered to, nats.
        horizon: samples over which it is steered.
        samples: samples of the round.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)


def place_reward(scores: Float[Tensor, " sample"], mask: Bool[Tensor, "sample step"]) -> Float[Tensor, "sample step"]:
    """Each sample's score on its last response token, 0 elsewhere."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).max(dim=1).values
    return torch.where(steps[None, :] == last[:, None], scores[:, None], 0.0)


def gae(
    rewards: Float[Tensor, "sample step"],
    values: Float[Tensor, "sample step"],
    mask: Bool[Tensor, "sample step"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "sample step"], Float[Tensor, "sample step"]]:
    """Generalised advantage estimates and returns, Schulman et al. 2016, eq. 16.

    A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t, where V is 0 after the last response
    token. The return that the value head is fitted to is A_t + V_t. Both are 0 where masked.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        following = torch.where(mask[:, step], delta + gamma * lam * following, 0.0)
        advantages[:, step] = following
        next_value = values[:, step]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Float[Tensor, "sample step"], mask: Bool[Tensor, "sample step"]) -> Float[Tensor, "sample step"]:
    """(x - mean) / sqrt(variance + 1e-8) over the unmasked entries (unbiased variance); 0 where masked."""
    centred = values - masked_mean(values, mask)
    variance = torch.where(mask, centred**2, 0.0).sum() / (mask.sum() - 1).clamp(min=1)
    return torch.where(mask, centred * torch.rsqrt(variance + 1e-8), 0.0)


def ppo_policy_loss(
    logprobs: Float[Tensor, "sample step"],
    old_logprobs: Float[Tensor, "sample step"],
    advantages: Float[Tensor, "sample step"],
    mask: Bool[Tensor, "sample step"],
    cliprange: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The clipped surrogate objective as a loss, Schulman et al. 2017, eq. 7, and the fraction of tokens it clips.

    loss = -mean min(r A, clip(r, 1 - cliprange, 1 + cliprange) A) with r = exp(log pi - log pi_old). A token counts as
    clipped where the second term is the smaller one, that is, where it gets no gradient.
    """
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0.0))
    plain = ratio * advantages
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    fraction = masked_mean((clipped < plain).to(ratio.dtype), mask)
    return -masked_mean(torch.minimum(plain, clipped), mask), fraction.detach()


def value_loss(
    values: Float[Tensor, "sample step"],
    old_values: Float[Tensor, "sample step"],
    returns: Float[Tensor, "sample step"],
    mask: Bool[Tensor, "sample step"],
    cliprange_value: float,
) -> Float[Tensor, ""]:
    """The clipped squared error of the value head: mean max((V - R)^2, (V_clip - R)^2) / 2.

    V_clip = V_old + clip(V - V_old, -cliprange_value, cliprange_value), as in the reference implementation of Schulman
    et al. 2017 (openai/baselines, ppo2).
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(
    values: Float[Tensor, "sample step"], returns: Float[Tensor, "sample step"], mask: Bool[Tensor, "sample step"]
) -> float:
    """1 - Var(R - V) / Var(R) over the unmasked tokens: 1 is perfect, 0 a constant's; NaN if R is constant."""
    target = returns[mask].double()
    error = target - values[mask].double()
    variance = target.var(correction=0)
    return float(1 - error.var(correction=0) / variance) if float(variance) > 0 else float("nan")


def distinct_n(sequences: list[list[int]], n: int = 2) -> float:
    """Unique n-grams over all n-grams of the sequences (Li et al. 2016, "A diversity-promoting objective function").

    NaN where no sequence has n tokens. It falls as the number of sequences grows, so compare equal numbers only.
    """
    grams = [tuple(ids[start : start + n]) for ids in sequences for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _weighted(p: Tensor, x: Tensor) -> Tensor:
    """P times x, 0 where p is 0 (there x may be infinite)."""
    return torch.where(p > 0, p * x, 0.0)
