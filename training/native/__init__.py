"""PPO of our own: causal and encoder-decoder models, whole, partly frozen or by LoRA, in one process or several.

Files: `ppo` (the rounds), `learner` (optimiser steps), `policy` (what is trained), `scores` (rewards as PPO uses them),
`state` (what a run goes on from after a crash), `processes` (several of them as one).
"""

from training.native.ppo import tune
from training.native.state import state_step

__all__ = ["state_step", "tune"]
