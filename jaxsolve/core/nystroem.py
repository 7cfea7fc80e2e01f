"""A low-rank inverse from products with random vectors.

With Omega n x k orthonormal, J is replaced by its Nystrom approximation U diag(s) U' of rank k, and

    (J + d I)^{-1} b  is about  U diag(1 / (s + d)) U'b + (b - U U'b) / d

Hataya and Yamada (2023), for hypergradients; the stable form of Frangella, Tropp and Udell (2023,
algorithm 2.1).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from .checks import check_count, check_positive
from .krylov import Product, Vector
from .linear import AbstractLinearSolver, Operator
from .mesh import vary, varying
from .vectors import matmul, norm


class Nystroem(AbstractLinearSolver):
    """For symmetric J with eigenvalues of at least 0, few of them large: an approximation.

    Off by the eigenvalues that rank k leaves out, and by the damping: at most b times
    2 |J - J_k| / d^2 + 1 / d - 1 / (d + least eigenvalue). As a preconditioner of
    `ConjugateGradient` it leaves no error.

    Args:
        rank: k, products with J that are made at once.
        damping: d > 0.
        seed: of Omega.
    """

    rank: int
    damping: float
    seed: int = 0

    exact: ClassVar[bool] = False

    def __check_init__(self):
        check_count("Nystroem", rank=self.rank)
        check_positive("Nystroem", damping=self.damping)

    def solve(self, operator: Operator, b: Vector) -> Vector:
        return self.prepared(operator, b)(b)

    def prepared(self, operator: Operator, like: Vector) -> Product:
        if not operator.structure.symmetric:
            raise TypeError(
                "`linear_solver=Nystroem(...)` needs a symmetric Jacobian: use GMRES() or "
                "NormalCG()."
            )
        damping = jnp.asarray(self.damping, like.dtype)
        rank = min(self.rank, like.size)
        normal = jax.random.normal(jax.random.key(self.seed), (like.size, rank), like.dtype)
        basis = vary(jnp.linalg.qr(normal)[0], varying(like))
        products = jax.vmap(operator.product, in_axes=1, out_axes=1)(basis)
        # A shift makes the Cholesky factor exist; it is taken off again.
        shift = jnp.finfo(like.dtype).eps * norm(products.ravel()) * like.size**0.5
        shift = jnp.where(shift > 0, shift, 1)
        products = products + shift * basis
        core = matmul(basis.T, products)
        factor = jnp.linalg.cholesky((core + core.T) / 2)
        root = jax.scipy.linalg.solve_triangular(factor, products.T, lower=True).T
        left, values, _ = jnp.linalg.svd(root, full_matrices=False)
        found = jnp.maximum(values**2 - shift, 0)

        def inverse(b: Vector) -> Vector:
            along = matmul(b, left)
            return matmul(left, along / (found + damping)) + (b - matmul(left, along)) / damping

        return inverse
