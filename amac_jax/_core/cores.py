"""A transformation in the place of a core: its updates must point along the gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, stage_of


def core_stage(core: optax.GradientTransformation, argument: str = "core") -> Stage:
    """A core as a stage.

    Raises:
      ValueError: for anything that is not a transformation, and for an optimizer: at once if it is
        ours, from `init` if it is a foreign one that can be tried there.
    """
    stage = stage_of(core, argument)
    refusal = (
        f"{argument} must be a scale_by_* transformation, whose updates point along the gradient, "
        "got an optimizer, whose updates point against it; pass its core, such as scale_by_adam()"
    )
    if stage.is_optimizer:
        raise ValueError(f"{refusal}: {core!r}")
    return stage if stage.is_optimizer is False else stage._replace(init=_tried(stage, refusal))


def _tried(stage: Stage, refusal: str) -> Callable[[Tree], Tree]:
    """`init`, which first tries a foreign core for three steps on four numbers.

    An optimizer in the place of a core is refused: its updates already descend, and `compose`
    would turn them uphill. A core that cannot be tried passes. It asks for extra args or for a
    tree of its own, or its hyperparameters are traced.
    """
    params = {"w": np.ones((2, 2), np.float32)}
    gradients = {"w": np.array([[1e3, 1e3], [1e3, -1e3]], np.float32)}

    def init(real_params: Tree) -> Tree:
        try:
            with jax.ensure_compile_time_eval():
                state, along = stage.init(params), 0.0
                for count in range(3):  # the first rate of a schedule may be 0
                    updates, state = stage.update(gradients, state, params, Step(jnp.array(count)))
                    along += float(jnp.vdot(updates["w"], gradients["w"]))
        except Exception:  # the core cannot be tried; a true defect comes up again in use
            along = 0.0
        if along < 0:
            raise ValueError(refusal)
        return stage.init(real_params)

    return init
