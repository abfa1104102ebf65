"""The optimizer step that benchmarks compile, and the optimizers that several of them build."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE
from amac_jax.techniques._weight_decay import MEASURED_EVERY

STEPS = 5  # the period of lookahead and averaging
METRICS_PERIOD = 20  # of metrics that are not recorded at every step
BASELINE = "optax.adamw"
SHARES = {
    "lookahead": 1 / STEPS,
    "average_weights": 1 / STEPS,
    "record_metrics": 1 / METRICS_PERIOD,
    "decay_weights": 1 / MEASURED_EVERY,
    "skip_nonfinite": 0.0,  # where the gradients' norm is not finite
}
"""The share of the steps that take the dearer branch of a technique's conditional."""


def amac(**techniques: Any) -> optax.GradientTransformationExtraArgs:
    # Averaging from the first synchronization on: the dearest part of a run, the last quarter.
    techniques.setdefault("average_start", STEPS)
    return amac_jax.amac(1e-3, 10**6, **techniques)


def every(**techniques: Any) -> optax.GradientTransformationExtraArgs:
    return amac(**{**EVERY_TECHNIQUE, **techniques})


def optax_muon() -> optax.GradientTransformation:
    return optax.contrib.muon(1e-3, weight_decay=0.1, consistent_rms=0.2)


def step_of(tx: optax.GradientTransformation, **extra_args: Any) -> Callable[..., Any]:
    """(parameters, state, gradients) -> new parameters and state."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def lowered(tx: optax.GradientTransformation, params: Any, models: int = 1, times: int = 1) -> Any:
    """The donated step of `tx`, ready to compile; nothing is allocated.

    With `models` > 1 the leaves have a leading axis of that length, and the step is vmapped. With
    `times` > 1 the program takes so many steps in a loop.
    """
    step = step_of(tx)
    shapes = jax.eval_shape(lambda params: params, params)
    if models > 1:
        step, tx = jax.vmap(step), tx._replace(init=jax.vmap(tx.init))

    def stepped(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        def once(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return step(*carry, gradients)

        return jax.lax.fori_loop(0, times, once, (params, state))

    program = step if times == 1 else stepped
    return jax.jit(program, donate_argnums=(0, 1)).lower(
        shapes, jax.eval_shape(tx.init, params), shapes
    )


def count_of(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_per_parameter(program: Any, params: Any) -> float:
    """What the compiled program says it reads and writes, a conditional at its dearer branch."""
    return program.cost_analysis()["bytes accessed"] / count_of(params)


def transformer(layers: int, width: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The shapes of an embedding of 1,024 tokens, of four kernels a layer and of a head.

    Example:
      >>> shapes = transformer(14, 768)
      >>> f"{count_of(shapes) / 1e6:.1f}M in {len(jax.tree.leaves(shapes))}"
      '100.7M in 58'
    """
    tokens = 1024

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    layer = {
        "qkv": {"kernel": leaf(width, 3 * width)},
        "out": {"kernel": leaf(width, width)},
        "up": {"kernel": leaf(width, 4 * width)},
        "down": {"kernel": leaf(4 * width, width)},
    }
    return {
        "embedding": {"embedding": leaf(tokens, width)},
        **{f"layer_{i}": layer for i in range(layers)},
        "head": {"kernel": leaf(width, tokens)},
    }


def share_of_steps(scope: str) -> float:
    """How many of the steps take the dearer branch of the conditional with this scope.

    Example:
      >>> share_of_steps("jit(step)/record_metrics/cond/branch_1_fun/lookahead/cond")
      0.2
      >>> share_of_steps("jit(step)/cond")
      1.0
    """
    known = [SHARES[part] for part in scope.split("/") if part in SHARES]
    return known[-1] if known else 1.0
