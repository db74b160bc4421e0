"""Logit lens: what each layer's residual would predict if it were the last (nostalgebraist 2020)."""

from __future__ import annotations

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.divergences import kl_divergence
from interp.hooks import Site
from interp.measures.arrays import dataset, stack_models, strings, variable
from interp.measures.logits import logit_difference, target_ids
from interp.models import Policy, Trace
from interp.prompts import token_text


def lens_sites(policy: Policy) -> list[Site]:
    """The residual before every layer, and after the last."""
    layers = policy.parts.n_layers
    return [Site("resid_pre", layer) for layer in range(layers)] + [Site("resid_post", layers - 1)]


def lens_logits(trace: Trace, site: Site) -> Float[Tensor, "prompt vocab"]:
    """Logits of the residual at `site` and each prompt's last token, through the model's own norm and unembedding."""
    logits: Tensor = trace.policy.parts.logits(trace.batch.at_last_prompt(trace[site]))
    return logits if logits.dtype == torch.float64 else logits.float()


def lens(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit lens of both models at each prompt's last token, each through its own final norm and unembedding.

    By layer: the logit difference and the probabilities of the two target tokens (see `target_ids`), the top token, and
    KL(tuned || base) of the two lenses.
    """
    targets = target_ids(base, tuned).cpu()
    sites = lens_sites(base.policy)
    differences, probs, tops, kls = [], [], [], []
    for site in sites:
        logits = [lens_logits(trace, site).cpu() for trace in (base, tuned)]
        log_probs = [values.double().log_softmax(-1) for values in logits]
        differences.append(stack_models(*(logit_difference(values, targets) for values in logits)))
        probs.append(stack_models(*(values.gather(1, targets).exp() for values in log_probs)))
        tops.append(stack_models(*(values.argmax(-1) for values in logits)))
        kls.append(kl_divergence(logits[1], logits[0]))
    texts = [
        [[token_text(base.policy.tokenizer, i) for i in row] for row in prompt]
        for prompt in torch.stack(tops, -1).tolist()
    ]
    return dataset(
        {
            "lens_logit_diff": variable(
                "prompt model site", torch.stack(differences, -1), "logit lens: answer minus alternative", "logits"
            ),
            "lens_answer_prob": variable(
                "prompt model answer site",
                torch.stack(probs, -1),
                "logit lens: probability of the answers",
                "probability",
            ),
            "lens_top_token": variable("prompt model site", strings(texts), "logit lens: likeliest token"),
            "lens_kl": variable("prompt site", torch.stack(kls, -1), "logit lens: KL(tuned || base)", "nats"),
        },
        site=[str(site) for site in sites],
    )
