"""The inverse of an empirical Fisher matrix, from m gradients.

    F = delta I + c G'G,    G in R^{m x d} holds a gradient a row,    c = b / m

b is the number of samples over which each gradient is a mean: near a fit, where the mean gradient
vanishes, the covariance of such a mean is 1/b of that of one sample's, and F does not depend on b.
With one Cholesky factor of the m x m matrix K = delta I + c G G' (Woodbury),

    F^{-1} x = (x - c G' K^{-1} G x) / delta,        F^{-1} G' = G' K^{-1}.            (1)

The second form serves what lies in the span of the gradients: nothing is divided by delta in it,
and nothing cancels. Of no fewer gradients than variables F itself is the smaller matrix, and is
factored: (1) would be a difference in every direction. Frantar, Kurtic and Alistarh, M-FAC (2021),
whose recursions give the same.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from ..core.checks import check_count, check_instance, check_positive, show
from ..core.linear import AbstractLinearSolver, Operator
from ..core.vectors import identity, matmul, ravel

Scalar = Float[Array, ""]
Vector = Float[Array, " d"]


class FisherInverse(AbstractLinearSolver):
    """F^{-1} of given gradients: a linear map, and a method for systems whose matrix is near F.

    F may be block-diagonal: then K, and (1), are those of each block of coordinates.

    Attributes:
        rows: G, its columns in blocks (the last one padded with zeros).
        factor: the Cholesky factor of K, or of F where that is no larger. Where delta is below the
            rounding of G G' its diagonal is larger, so that (1) stays positive definite for
            collinear gradients too.
        damping: delta.
        scale: c.
        size: d.
    """

    rows: Float[Array, "k m c"]
    factor: Float[Array, "k n n"]
    damping: Scalar
    scale: Scalar
    size: int = eqx.field(static=True)

    exact: ClassVar[bool] = False

    def solve(self, operator: Operator, b: Vector) -> Vector:
        """F^{-1} b: F stands for the operator, which is not looked at."""
        return self(b)

    def __call__(self, vector: Vector) -> Vector:
        """F^{-1} times a vector."""
        if vector.shape != (self.size,):
            raise ValueError(
                f"M-FAC: the vector is {show(vector)}, but the gradients have {self.size} entries."
            )
        blocks = self._split(vector)
        if _few(self.rows):
            return self._join(self._inverse(blocks[:, :, None])[:, :, 0])
        pulled = matmul(self.rows, blocks[:, :, None])
        pushed = matmul(jnp.swapaxes(self.rows, 1, 2), self._inverse(pulled))[:, :, 0]
        return self._join((blocks - self.scale * pushed) / self.damping)

    def combined(self, weights: Float[Array, " m"]) -> Vector:
        """F^{-1} of the gradients' combination G'w, by the second form of (1)."""
        every = jnp.broadcast_to(weights, self.rows.shape[:2])[:, :, None]
        back = jnp.swapaxes(self.rows, 1, 2)
        if _few(self.rows):
            return self._join(self._inverse(matmul(back, every))[:, :, 0])
        return self._join(matmul(back, self._inverse(every))[:, :, 0])

    def diagonal(self) -> Vector:
        """The diagonal of F^{-1}; never below 1 / F_kk, which bounds it whatever F is."""
        if _few(self.rows):
            unit = jnp.broadcast_to(identity(self.rows[0, 0]), self.factor.shape)
            return self._join(jnp.diagonal(self._inverse(unit), axis1=1, axis2=2))
        inner = jnp.sum(self.rows * self._inverse(self.rows), axis=1)
        least = 1 / (self.damping + self.scale * jnp.sum(self.rows**2, axis=1))
        return self._join(jnp.maximum((1 - self.scale * inner) / self.damping, least))

    def _inverse(self, right: Float[Array, "k n r"]) -> Float[Array, "k n r"]:
        """K^{-1}, or F^{-1}, of what stands on the right."""
        back = jax.vmap(lambda factor, r: jax.scipy.linalg.cho_solve((factor, True), r))
        return back(self.factor, right)

    def _split(self, vector: Vector) -> Float[Array, "k c"]:
        count, _, width = self.rows.shape
        return jnp.pad(vector, (0, count * width - self.size)).reshape(count, width)

    def _join(self, blocks: Float[Array, "k c"]) -> Vector:
        return blocks.reshape(-1)[: self.size]


def fisher_inverse(
    gradients: Float[Array, "m d"],
    damping: float | Scalar,
    *,
    samples: int = 1,
    block_size: int | None = None,
) -> FisherInverse:
    """F^{-1} of m gradients, ready to be applied: O(m^2 d), and O(m d) for each product.

    Args:
        gradients: one a row.
        damping: delta > 0.
        samples: b, over which each gradient is a mean.
        block_size: of the diagonal blocks of F, `None` for one block.
    """
    count, size = gradients.shape
    width = size if block_size is None else min(block_size, size)
    blocks = -(-size // width)
    padded = jnp.pad(gradients, ((0, 0), (0, blocks * width - size)))
    rows = jnp.swapaxes(padded.reshape(count, blocks, width), 0, 1)
    scale = jnp.asarray(samples / count, gradients.dtype)
    return _factored(rows, None, jnp.asarray(damping, gradients.dtype), scale, size)


def _few(rows: Float[Array, "k m c"]) -> bool:
    """Whether there are no more variables than gradients."""
    return rows.shape[2] <= rows.shape[1]


def _factored(rows, gram, damping: Scalar, scale: Scalar, size: int) -> FisherInverse:
    """`gram`: G G', where it is known."""
    if _few(rows):
        gram = matmul(jnp.swapaxes(rows, 1, 2), rows)
    elif gram is None:
        gram = matmul(rows, jnp.swapaxes(rows, 1, 2))
    count = gram.shape[-1]
    scaled = scale * gram
    largest = jnp.max(jnp.diagonal(scaled, axis1=1, axis2=2), axis=1)
    least = 4 * count * jnp.finfo(gram.dtype).eps * largest
    diagonal = jnp.maximum(damping, least)[:, None, None] * jnp.eye(count, dtype=gram.dtype)
    return FisherInverse(rows, jnp.linalg.cholesky(scaled + diagonal), damping, scale, size)


class GradientWindow(eqx.Module):
    """The last m gradients and their products with each other: a ring that fits a scan's carry.

    A gradient that enters costs one product with the others; the products are not formed anew.

    Attributes:
        rows: the gradients; those not filled yet are 0.
        gram: G G'.
        count: gradients that have entered so far.
    """

    rows: Float[Array, "m d"]
    gram: Float[Array, "m m"]
    count: Int[Array, ""]

    @staticmethod
    def empty(number: int, size: int, dtype: jnp.dtype) -> "GradientWindow":
        """A window for `number` gradients of `size` entries."""
        return GradientWindow(
            jnp.zeros((number, size), dtype),
            jnp.zeros((number, number), dtype),
            jnp.zeros((), jnp.int32),
        )

    def push(self, gradient: Vector) -> "GradientWindow":
        """The window with one more gradient, in the place of its oldest."""
        place = self.count % self.rows.shape[0]
        rows = self.rows.at[place].set(gradient)
        products = matmul(rows, gradient)
        gram = self.gram.at[place].set(products).at[:, place].set(products)
        return GradientWindow(rows, gram, self.count + 1)

    def inverse(self, damping: float | Scalar, *, samples: int = 1) -> FisherInverse:
        """F^{-1} of the gradients that are there; m counts those alone."""
        dtype = self.rows.dtype
        number = jnp.clip(self.count, 1, self.rows.shape[0]).astype(dtype)
        scale = samples / number
        damping = jnp.asarray(damping, dtype)
        return _factored(self.rows[None], self.gram[None], damping, scale, self.rows.shape[1])

    def newest(self, damping: float | Scalar, *, samples: int = 1) -> Vector:
        """F^{-1} of the last gradient that entered."""
        number = self.rows.shape[0]
        last = jnp.arange(number) == (self.count - 1) % number
        return self.inverse(damping, samples=samples).combined(last.astype(self.rows.dtype))


class MFACInverse(AbstractLinearSolver):
    """M-FAC: F^{-1} in the place of the inverse Hessian of a lower level.

    An approximation: F is near the Hessian where the lower level is a negative log-likelihood near
    its fit. As a linear solver it biases a hypergradient; as a preconditioner of conjugate
    gradients it does not. It has to be bound to gradients before it solves anything, by `bind`, or
    by `at` where it knows how to take them.

    The rows are gradients of the data term. Fold a term rho ||y||^2 / 2 of the lower level into the
    damping (`shift`), for its gradient has no noise from which F could know it.

    Args:
        number: m, the gradients that a method takes where it takes them itself (`BiP`, `OBS`).
        damping: delta.
        samples: b, over how many samples each gradient is a mean. `None` is 1, or the batch size
            of a method that takes the gradients itself.
        gradients: `(x, y, args)` -> the m gradients of the lower level in y, a pytree like y with a
            leading axis.
        block_size: of the diagonal blocks of F, `None` for one block.

    Raises:
        ValueError: a setting is not positive.
    """

    number: int = 64
    damping: float = 1e-3
    samples: int | None = None
    gradients: Callable[[PyTree, PyTree, PyTree], PyTree[Array]] | None = None
    block_size: int | None = None

    exact: ClassVar[bool] = False

    def __check_init__(self):
        name = "MFACInverse"
        optional = {"samples": self.samples, "block_size": self.block_size}
        check_count(name, tuple(optional), number=self.number, **optional)
        check_positive(name, damping=self.damping)
        wanted = "a function of (x, y, args) or None"
        check_instance(name, "gradients", self.gradients, Callable | None, wanted)

    def bind(self, gradients: PyTree[Array], shift: float | Scalar = 0.0) -> FisherInverse:
        """F^{-1} of gradients.

        Args:
            gradients: a pytree whose leaves have a leading axis, of any length m.
            shift: added to the damping.
        """
        rows = stacked(gradients)
        damping = jnp.asarray(self.damping, rows.dtype) + jnp.asarray(shift, rows.dtype)
        return fisher_inverse(rows, damping, samples=self.samples or 1, block_size=self.block_size)

    def at(
        self, x: PyTree, y: PyTree, args: PyTree = None, shift: float | Scalar = 0.0
    ) -> FisherInverse:
        """F^{-1} of the gradients at a point."""
        if self.gradients is None:
            raise TypeError(
                "MFACInverse has no `gradients`: give MFACInverse(gradients=fn), where fn(x, y, "
                "args) returns gradients of the lower level, a pytree like y with a leading axis."
            )
        return self.bind(self.gradients(x, y, args), shift)

    def solve(self, operator: Operator, b: Vector) -> Vector:
        raise TypeError(
            "MFACInverse is not bound to gradients: use MFACInverse(...).bind(gradients), or give "
            "MFACInverse(gradients=fn) to a method that binds it."
        )


def stacked(gradients: PyTree[Array]) -> Float[Array, "m d"]:
    """Gradients with a leading axis as the rows of a matrix, in the order of `ravel_pytree`.

    Raises:
        TypeError: a leaf is no floating array.
        ValueError: leading axes differ.
    """
    leaves = jtu.tree_flatten_with_path(gradients)[0]
    if not leaves:
        raise ValueError("M-FAC: `gradients` has no leaves.")
    first, model = leaves[0]
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0 or leaf.shape[0] != model.shape[0]:
            raise ValueError(
                f"M-FAC: `gradients{jtu.keystr(path)}` is {show(leaf)}, but "
                f"`gradients{jtu.keystr(first)}` is {show(model)}: every leaf has a gradient a row."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"M-FAC: `gradients{jtu.keystr(path)}` is {show(leaf)}; gradients are real "
                "floating-point arrays."
            )
    return jax.vmap(ravel)(gradients)
