"""How are weights moved? A name in the config becomes an optax chain, and a step becomes a learning
rate.
"""

import jax
import optax

from lm_jax.config import OptimizerConfig

NOT_DECAYED = ("scale", "bias", "up_bias", "down_bias", "bq", "bk", "bv", "bo")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """step -> learning rate: linear warm-up, then cosine, warm-up-stable-decay (arXiv:2404.06395)
    or constant.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    end = peak * config.end_fraction
    warm = optax.linear_schedule(peak / (warmup + 1), peak, warmup) if warmup else None
    parts: list[optax.Schedule] = [warm or optax.constant_schedule(peak)]
    bounds = [warmup]
    if config.schedule == "cosine":
        decay = config.decay_steps or steps - warmup
        parts.append(optax.cosine_decay_schedule(peak, max(1, decay), config.end_fraction))
    elif config.schedule == "wsd":
        decay = config.decay_steps or max(1, steps // 5)
        parts += [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)]
        bounds.append(max(warmup, steps - decay))
    else:
        parts.append(optax.constant_schedule(peak))
    return optax.join_schedules(parts, bounds)


def decayed(tree):
    """Which leaves weight decay applies to, by name: all but norms and biases. (Layers are stacked:
    a bias has
    two axes, so counting them would not tell.)"""

    def leaf(path, _):
        names = [part.name for part in path if hasattr(part, "name") and part.name != "value"]
        return not names or names[-1] not in NOT_DECAYED

    return jax.tree_util.tree_map_with_path(leaf, tree)


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) without its clipping, which the train step does with a
    norm it has anyway.
    """
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
