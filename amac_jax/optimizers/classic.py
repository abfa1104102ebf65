"""The classic optimizers: each a core, and through `compose` every technique."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from amac_jax.leaves import floats_only
from amac_jax.optimizers.compose import compose, takes_techniques
from amac_jax.schedules import Hyperparameter, check
from amac_jax.transforms.adabelief import scale_by_adabelief
from amac_jax.transforms.momentum import heavy_ball
from amac_jax.transforms.newton import scale_by_newton
from amac_jax.transforms.radam import scale_by_radam
from amac_jax.transforms.sophia import scale_by_sophia

_RANGES = {  # of the cores' hyperparameters, under the names that users pass them by
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "decay": "[0, 1)",
    "eps": "[0, inf)",
    "eps_root": "[0, inf)",
}


def core(
    factory: Callable[..., optax.GradientTransformation], **hyperparameters: Any
) -> optax.GradientTransformation:
    """One of Optax's cores, its arguments checked; as hyperparameters they may be schedules."""
    for name, value in hyperparameters.items():
        if name in _RANGES:
            check(name, value, _RANGES[name])
    if any(callable(value) for value in hyperparameters.values()):
        return optax.inject_hyperparams(factory)(**hyperparameters)
    return factory(**hyperparameters)


@takes_techniques
def sgd(learning_rate: Hyperparameter, **techniques: Any) -> optax.GradientTransformationExtraArgs:
    """Gradient descent.

        theta <- theta - eta g

    Args:
      learning_rate: eta, in the unit of parameter per unit of gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    `optax.sgd` has momentum built in; here that is `momentum`, or `nesterov`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([-0.1,  0.2], dtype=float32)

    Reference:
      Robbins and Monro, A Stochastic Approximation Method, 1951.
    """
    return compose(optax.identity(), learning_rate, **techniques)


@takes_techniques
def momentum(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    dampening: Hyperparameter = 0.0,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with Polyak's momentum.

        v <- beta v + (1 - dampening) g
        theta <- theta - eta v

    Args:
      learning_rate: eta, in units of parameter per unit of gradient; >= 0. Without dampening a
        constant gradient moves 1 / (1 - beta) times as far a step as with `sgd`.
      decay: beta, in [0, 1). At 0, without dampening, it is `sgd`.
      dampening: in [0, 1]; beta gives an average of gradients, with `sgd`'s learning rate.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `heavy_ball`.

    Raises:
      ValueError: for an argument outside its range.

    The velocity holds gradients, and a new learning rate acts at once; the technique
    `momentum=0.9` of the other optimizers holds updates. `optax.sgd(momentum=...)` is this one
    without dampening.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = momentum(0.1, decay=0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      >>> updates.round(3)
      Array([-0.15], dtype=float32)

    Reference:
      Polyak, Some Methods of Speeding Up the Convergence of Iteration Methods, 1964.
    """
    return compose(heavy_ball(decay, dampening=dampening), learning_rate, **techniques)


@takes_techniques
def nesterov(
    learning_rate: Hyperparameter, decay: Hyperparameter = 0.9, **techniques: Any
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with Nesterov's momentum, whose gradient is taken one step ahead.

        v <- beta v + grad L(w - eta beta v);   w <- w - eta v

    in terms of theta = w - eta beta v, the point at which the gradient g is taken:

        v <- beta v + g;   theta <- theta - eta (g + beta v)

    Args:
      learning_rate: eta, in units of parameter per unit of gradient; >= 0.
      decay: beta, in [0, 1). At 0 it is `sgd`.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.trace(decay, nesterov=True)`.

    Raises:
      ValueError: for an argument outside its range.

    The same as `optax.sgd(learning_rate, momentum=decay, nesterov=True)`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nesterov(0.1, decay=0.5)
      >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0].round(3)
      Array([-0.15], dtype=float32)

    Reference:
      Nesterov, A Method of Solving a Convex Programming Problem with Convergence Rate O(1/k^2),
      1983; Sutskever et al., On the Importance of Initialization and Momentum in Deep Learning,
      2013.
    """
    return compose(core(optax.trace, decay=decay, nesterov=True), learning_rate, **techniques)


@takes_techniques
def adagrad(
    learning_rate: Hyperparameter, eps: Hyperparameter = 1e-6, **techniques: Any
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad: every weight's rate falls with the squares of its gradients so far.

        s <- s + g^2;   theta <- theta - eta g / sqrt(s + eps),   s = 0 at first

    Args:
      learning_rate: eta, in units of the parameters, the length of the first step; >= 0.
      eps: in the square of the gradient's unit; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is
      `optax.scale_by_rss(initial_accumulator_value=0.0)`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adagrad` starts from s = 0.1, and eps is 1e-7.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adagrad(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
      2011.
    """
    rss = core(optax.scale_by_rss, initial_accumulator_value=0.0, eps=eps)
    return compose(rss, learning_rate, **techniques)


@takes_techniques
def rmsprop(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp: the gradient over the root of its recent mean square.

        s <- gamma s + (1 - gamma) g^2;   theta <- theta - eta g / sqrt(s + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0. The first steps are up to
        1 / sqrt(1 - gamma) times as long.
      decay: gamma, in [0, 1).
      eps: in the square of the gradient's unit; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.scale_by_rms`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.rmsprop` is the same with its defaults.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = rmsprop(0.1, decay=0.75)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.
    """
    return compose(core(optax.scale_by_rms, decay=decay, eps=eps), learning_rate, **techniques)


@takes_techniques
def adam(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Adam.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        theta <- theta - eta (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.scale_by_adam`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adam` keeps moments in the parameters' precision; this keeps at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam(0.1, sync_period=5)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980.
    """
    return compose(core(optax.scale_by_adam, b1=b1, b2=b2, eps=eps), learning_rate, **techniques)


@takes_techniques
def adamw(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = 0.01,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay.

        theta <- theta - eta (m_hat / (sqrt(v_hat) + eps) + lambda theta)

    with the moments of `adam`, and the decay on kernels only.

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      weight_decay: lambda, dimensionless: a step removes eta lambda of a weight. Off: 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adamw` decays every leaf: that is `decay_mask=True` here.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamw(0.1, weight_decay=0.5)
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> gradients = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> updates["kernel"].round(3), updates["bias"].round(3)
      (Array([[-0.15],
             [-0.15]], dtype=float32), Array([-0.1], dtype=float32))

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101.
    """
    adam_core = core(optax.scale_by_adam, b1=b1, b2=b2, eps=eps)
    return compose(adam_core, learning_rate, weight_decay=weight_decay, **techniques)


@takes_techniques
def amsgrad(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    bias_corrected: bool = False,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad: Adam whose second moment never falls.

        m, v as in `adam`;   v_max <- max(v_max, v)
        theta <- theta - eta (m / (1 - b1^t)) / (sqrt(v_max) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0. Without `bias_corrected` the first
        steps are up to 1 / sqrt(1 - b2) times as long, about 30: warm up, or take less.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      bias_corrected: whether v is divided by 1 - b2^t before the maximum is taken.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is
      `optax.scale_by_amsgrad(bias_correction_nu=bias_corrected)`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.amsgrad` has the bias of v corrected. The paper corrects neither moment:
    `compose(optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False), eta)`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amsgrad(0.1, b2=0.75)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Reddi et al., On the Convergence of Adam and Beyond, 2018, https://arxiv.org/abs/1904.09237.
    """
    ams = core(
        optax.scale_by_amsgrad, b1=b1, b2=b2, eps=eps, bias_correction_nu=bool(bias_corrected)
    )
    return compose(ams, learning_rate, **techniques)


@takes_techniques
def adamax(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """AdaMax: Adam with the largest recent gradient in place of the root of the second moment.

        m <- b1 m + (1 - b1) g;   s <- max(b2 s, |g| + eps)
        theta <- theta - eta (m / (1 - b1^t)) / s

    Args:
      learning_rate: eta, in units of the parameters, the longest step; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the maximum, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.scale_by_adamax`.

    Raises:
      ValueError: for an argument outside its range.

    The same as `optax.adamax`. The paper has no eps, and divides by 0 where g has always been 0.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamax(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Kingma and Ba, Adam, 2015, section 7.1, https://arxiv.org/abs/1412.6980.
    """
    return compose(core(optax.scale_by_adamax, b1=b1, b2=b2, eps=eps), learning_rate, **techniques)


@takes_techniques
def nadam(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """NAdam: Adam with Nesterov's momentum.

        m, v as in `adam`
        m_bar = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)
        theta <- theta - eta m_bar / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is
      `optax.scale_by_adam(nesterov=True)`.

    Raises:
      ValueError: for an argument outside its range.

    The same as `optax.nadam`: b1 is constant, where the paper may schedule it.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadam(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.147,  0.147], dtype=float32)

    Reference:
      Dozat, Incorporating Nesterov Momentum into Adam, 2016.
    """
    nesterov_adam = core(optax.scale_by_adam, b1=b1, b2=b2, eps=eps, nesterov=True)
    return compose(nesterov_adam, learning_rate, **techniques)


@takes_techniques
def radam(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    threshold: Hyperparameter = 4.0,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """RAdam: Adam rectified for the variance of its first denominators; no warm-up needed.

        m_hat, v_hat as in `adam`
        rho_inf = 2 / (1 - b2) - 1,   rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        theta <- theta - eta r_t m_hat / (sqrt(v_hat) + eps)     where rho_t > threshold
        theta <- theta - eta m_hat                               elsewhere

    Args:
      learning_rate: eta, in units of the parameters; >= 0. The first steps, four with the
        defaults, are those of momentum, in units of parameter per unit of gradient.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      threshold: on rho_t, >= 4.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    `optax.radam` evaluates rho_t as it is written above, which in float32 loses all its digits
    for b2 near 1, and has a threshold of 5, which is not strict. The core, `scale_by_radam`,
    keeps them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = radam(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.2], dtype=float32)

    Reference:
      Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020,
      https://arxiv.org/abs/1908.03265.
    """
    return compose(scale_by_radam(b1, b2, eps, threshold), learning_rate, **techniques)


@takes_techniques
def adabelief(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter | None = None,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief: Adam with the spread of gradients in place of their size.

        m <- b1 m + (1 - b1) g;   s <- b2 s + (1 - b2) (g - m)^2
        theta <- theta - eta (m / (1 - b1^t)) / sqrt(s / (1 - b2^t) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in the square of the gradient's unit; > 0.
      eps_root: given, eps is placed as in the paper and in Optax: eps_root is added to s at
        every step, and the denominator is sqrt(s / (1 - b2^t)) + eps, with both >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; with `eps_root` the core is
      `optax.scale_by_belief(eps=eps, eps_root=eps_root)`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adabelief` is this one with eps=1e-16 and eps_root=1e-16.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adabelief(0.1, b1=0.5)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Zhuang et al., AdaBelief Optimizer, 2020, https://arxiv.org/abs/2010.07468.
    """
    if eps_root is None:
        belief = scale_by_adabelief(b1, b2, eps)
    else:
        belief = core(optax.scale_by_belief, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return compose(belief, learning_rate, **techniques)


@takes_techniques
def lion(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.99,
    weight_decay: Hyperparameter | None = 0.1,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Lion: the sign of a momentum, with decoupled weight decay.

        theta <- theta - eta (sign(b1 m + (1 - b1) g) + lambda theta)
        m <- b2 m + (1 - b2) g

    with the decay on kernels only.

    Args:
      learning_rate: eta, in units of the parameters, the length of every step; >= 0. A third to
        a tenth of AdamW's.
      b1: share of m in the sign, in [0, 1).
      b2: decay of m, in [0, 1).
      weight_decay: lambda, three to ten times AdamW's, for the same eta lambda. Off: 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.scale_by_lion`.

    Raises:
      ValueError: for an argument outside its range; from `init`, for complex parameters.

    `optax.lion` decays every leaf, which is `decay_mask=True` here, with lambda = 1e-3.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lion(0.1, weight_decay=None)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Chen et al., Symbolic Discovery of Optimization Algorithms, 2023,
      https://arxiv.org/abs/2302.06675.
    """
    # The sign of a complex number is a direction, and a step's parts would no longer be +-1.
    lion_core = floats_only(core(optax.scale_by_lion, b1=b1, b2=b2), refuses_complex="lion")
    return compose(lion_core, learning_rate, weight_decay=weight_decay, **techniques)


@takes_techniques
def sophia(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.96,
    b2: Hyperparameter = 0.99,
    gamma: Hyperparameter = 0.01,
    eps: Hyperparameter = 1e-12,
    update_interval: Hyperparameter = 10,
    weight_decay: Hyperparameter | None = 0.2,
    key: Any = 0,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Sophia-H: momentum over an estimate of the Hessian's diagonal, clipped; decoupled decay.

        m <- b1 m + (1 - b1) g
        at steps 1, k + 1, 2k + 1, ...:   h <- b2 h + (1 - b2) z * (H z)
        theta <- theta - eta (clip(m / max(gamma h, eps), -1, 1) + lambda theta)

    with H the Hessian of the objective, z random signs, and the decay on kernels only. The
    objective comes with each update: `tx.update(g, state, params, value_fn=...)`, a function of
    the parameters alone.

    Args:
      learning_rate: eta, in units of the parameters, the longest step; >= 0. The paper takes
        0.8 times AdamW's.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the diagonal, in [0, 1), per estimate.
      gamma: > 0. So large that 10 to 50 % of the elements are not clipped.
      eps: the least denominator, > 0.
      update_interval: k, in steps, >= 1.
      weight_decay: lambda. Off: 0.
      key: an integer seed or a JAX key, for the signs and for the noise if there is any.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; its `update` needs `params` and `value_fn`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    `optax.contrib.sophia` corrects m's bias, uses the diagonal one step late, decays every leaf,
    and calls the objective `obj_fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = sophia(0.1, b1=0.0, b2=0.0, gamma=1.0)
      >>> def value_fn(x):
      ...     return jnp.sum(x**2)
      >>> params = jnp.array([0.5, 3.0])
      >>> tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]
      Array([-0.05, -0.1 ], dtype=float32)

    Reference:
      Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
      Pre-training, 2023, https://arxiv.org/abs/2305.14342.
    """
    sophia_core = scale_by_sophia(b1, b2, gamma, eps, update_interval, key)
    return compose(sophia_core, learning_rate, weight_decay=weight_decay, key=key, **techniques)


@takes_techniques
def newton(
    learning_rate: Hyperparameter = 1.0,
    damping: Hyperparameter = 0.0,
    saddle_free: bool = False,
    *,
    matrix_free: bool | None = None,
    max_iterations: Hyperparameter = 32,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method, damped or saddle-free, with a matrix or without.

        theta <- theta - eta (H + delta I)^-1 g
        saddle_free:  theta <- theta - eta (|H| + delta I)^-1 g

    with H the Hessian of the objective, which comes with each update:
    `tx.update(g, state, params, value_fn=...)`, a function of the parameters alone. Up to 512
    parameters H is made and decomposed, beyond that only multiplied with vectors.

    Args:
      learning_rate: eta, dimensionless; 1 is Newton's step.
      damping: delta, in the unit of H; >= 0. Off: 0.
      saddle_free: whether saddle points and maxima repel; without it they attract.
      matrix_free: whether H is never made; None is beyond 512 parameters.
      max_iterations: vectors in the basis of the matrix-free step, >= 1.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; its `update` needs `params` and `value_fn`. The
      core is `scale_by_newton`, whose docstring says what becomes of singular and indefinite
      Hessians.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    Optax has no Newton step. Each costs as much as n gradients of n parameters, or 2
    `max_iterations`; the full step may overshoot far from a minimum: damp it, lower the learning
    rate, or use `optax.lbfgs`, which searches along the line.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def value_fn(x):
      ...     return jnp.cosh(0.5 * x)
      >>> tx, x = newton(), jnp.array(3.0)
      >>> state = tx.init(x)
      >>> for _ in range(4):
      ...     updates, state = tx.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
      ...     x = optax.apply_updates(x, updates)
      ...     print(f"{x:.5f}")
      1.18970
      0.12295
      0.00015
      0.00000

    Reference:
      Dauphin et al., Identifying and Attacking the Saddle Point Problem in High-Dimensional
      Non-Convex Optimization, 2014, https://arxiv.org/abs/1406.2572;
      Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    """
    newton_core = scale_by_newton(
        damping,
        saddle_free,
        matrix_free=matrix_free,
        max_iterations=max_iterations,
    )
    return compose(newton_core, learning_rate, **techniques)
