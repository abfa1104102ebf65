"""Random changes of images that leave their meaning as it is."""

import jax
import jax.numpy as jnp


def random_affine(
    images: jax.Array,
    key: jax.Array,
    *,
    degrees: float = 10.0,
    stretch: float = 0.1,
    shift: float = 0.07,
) -> jax.Array:
    """Each image turned, stretched and shifted by amounts of its own, in one interpolation.

    Args:
      images: (images, height, width), of any dtype; beyond their edges they are 0.
      key: a JAX key.
      degrees: the largest angle, either way.
      stretch: the largest change of height and, independently, width, in parts of them.
      shift: the largest shift along each axis, in parts of its length.

    Returns:
      float32, shaped as `images`. With all three amounts 0, the images.

    Example:
      >>> images = jnp.ones((2, 3, 3), jnp.uint8)
      >>> random_affine(images, jax.random.key(0), degrees=0.0, stretch=0.0, shift=0.0)[0, 0]
      Array([1., 1., 1.], dtype=float32)
    """
    count, *size = images.shape
    lengths = jnp.asarray(size, jnp.float32)
    centre = (lengths - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"), axis=-1) - centre

    def change(image, draw):
        turn, *factors = draw[0] * jnp.deg2rad(degrees), *(1 + stretch * draw[1:3])
        cosine, sine = jnp.cos(turn), jnp.sin(turn)
        matrix = jnp.array([[cosine, -sine], [sine, cosine]]) * jnp.stack(factors)
        source = grid @ matrix.T + centre + draw[3:] * shift * lengths
        coordinates = jnp.moveaxis(source, -1, 0)
        return jax.scipy.ndimage.map_coordinates(image, list(coordinates), order=1)

    draws = jax.random.uniform(key, (count, 5), minval=-1.0, maxval=1.0)
    return jax.vmap(change)(images.astype(jnp.float32), draws)
