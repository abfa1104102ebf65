"""The MNIST example's augmentation, on pictures of coordinates: where did each pixel come from?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from examples.mnist.augmentation import random_affine

affine = jax.jit(random_affine)

SIZE, COUNT = 21, 200
NONE = {"degrees": 0.0, "stretch": 0.0, "shift": 0.0}


def sources(**amounts) -> np.ndarray:
    """The place from which each pixel around the middle came: (images, 2, 5, 5), 0 the middle."""
    grid = np.meshgrid(*[np.arange(SIZE, dtype=np.float32) + 100] * 2, indexing="ij")
    found = [
        affine(np.tile(axis, (COUNT, 1, 1)), jax.random.key(3), **{**NONE, **amounts})
        for axis in grid
    ]
    middle = slice(SIZE // 2 - 2, SIZE // 2 + 3)
    return np.stack(found, axis=1)[:, :, middle, middle] - 100 - SIZE // 2


@pytest.fixture(scope="module")
def at_rest():
    return sources()


def test_nothing_changes_at_0_but_the_dtype():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 8), np.uint8)
    same = affine(images, jax.random.key(1), **NONE)
    assert same.dtype == jnp.float32
    np.testing.assert_array_equal(same, images)


def test_a_shift_moves_all_pixels_alike_in_both_directions_and_no_further(at_rest):
    moves = sources(shift=0.1) - at_rest
    np.testing.assert_allclose(moves, np.broadcast_to(moves[..., :1, :1], moves.shape), atol=1e-4)
    for along in moves[:, :, 0, 0].T:
        assert -2.1 <= along.min() < -1.9 < 1.9 < along.max() <= 2.1
    assert abs(np.corrcoef(moves[:, 0, 0, 0], moves[:, 1, 0, 0])[0, 1]) < 0.2


def test_a_turn_keeps_distances_and_stays_below_the_angle(at_rest):
    places = sources(degrees=30.0)
    np.testing.assert_allclose((places**2).sum(1), (at_rest**2).sum(1), atol=1e-3)
    angles = np.degrees(np.arctan2(places[:, 0, 2, 4], places[:, 1, 2, 4]))
    assert -30 <= angles.min() < -28 < 28 < angles.max() <= 30


def test_a_stretch_scales_each_axis_by_its_own_factor(at_rest):
    places = sources(stretch=0.2)
    factors = np.stack([places[:, 0, 4, 2], places[:, 1, 2, 4]]) / 2
    expected = at_rest * factors.T[:, :, None, None]
    np.testing.assert_allclose(places, expected, atol=1e-4)
    assert 0.8 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2
    assert abs(np.corrcoef(*factors)[0, 1]) < 0.2


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_it_is_one_linear_interpolation_with_zeros_beyond_the_edges(shape):
    """The matrix and the offset are read off two pictures of coordinates."""
    key, (height, width) = jax.random.key(5), shape
    image = np.random.default_rng(6).random(shape, np.float32)
    far = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    rows, columns = (
        np.asarray(affine(np.float32(axis + 1000)[None], key)[0]) - 1000 for axis in far
    )
    y, x = height // 2, width // 2
    corner = np.array([rows[y, x], columns[y, x]])
    matrix = np.array(
        [[axis[y + 1, x] - axis[y, x], axis[y, x + 1] - axis[y, x]] for axis in (rows, columns)]
    )
    expected = ndimage.affine_transform(
        image, matrix, corner - matrix @ [y, x], order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(affine(image[None], key)[0], expected, atol=2e-3)
