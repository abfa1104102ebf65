"""The two networks: an MLP, and a CNN whose convolutions are quick inside `scan` on a CPU too."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


def as_input(images):
    return images.astype(jnp.float32) / 127.5 - 1.0


class MLP(nn.Module):
    """The published job's network, with PyTorch's initial weights."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x.reshape(x.shape[0], -1)
        for width in (128, 64, 10):
            bound = x.shape[-1] ** -0.5
            initial = partial(jax.random.uniform, minval=-bound, maxval=bound)
            x = nn.Dense(width, kernel_init=initial, bias_init=initial)(x)
            x = nn.relu(x) if width != 10 else x
        return x


class Conv(nn.Module):
    """A 3x3 convolution as the product of its patches with a matrix.

    Inside `scan`, XLA on a CPU runs the gradient of `nn.Conv` 20 to 40 times slower than outside.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, use_bias=False)(jnp.concatenate(patches, axis=-1))


class CNN(nn.Module):
    """Convolutions with BatchNorm at a half, a quarter and an eighth of the resolution."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        def blocks(x):  # of 2x2 pixels
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4, -1)

        def conv(width, x):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(Conv(width)(x))
            return nn.relu(x)

        def pool(x):  # one more row and column where their number is odd
            _, height, width, _ = x.shape
            x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
            return jnp.max(blocks(x), axis=3)

        x = conv(32, blocks(x[..., None])[..., 0])  # (batch, 14, 14, 32), from 4 pixels each
        x = conv(64, conv(64, pool(x)))  # (batch, 7, 7, 64)
        x = conv(128, conv(128, pool(x)))  # (batch, 4, 4, 128)
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


MODELS = {"mlp": MLP, "cnn": CNN}
