"""`solve`: the door, the verdict, the derivative, warm starts, history, batches."""

import re
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from jaxsolve import RESULTS
from jaxsolve.smooth.lbfgs import LBFGS
from jaxsolve.smooth.newton import Newton
from jaxsolve.smooth.problems import FixedPoint, LeastSquares, Minimise, Root


def cubic(y, a):
    return y**3 + y - a


def root_derivative(y):
    return 1 / (3 * y**2 + 1)


def test_value_and_derivatives_of_every_order(x64):
    f = lambda a: js.solve(Root(cubic, a), Newton(), jnp.array(1.0)).value
    y = f(3.0)
    np.testing.assert_allclose(y**3 + y, 3.0, rtol=1e-8)
    first = root_derivative(y)
    second = -6 * y * first**3
    third = -6 * first**4 + 108 * y**2 * first**5
    np.testing.assert_allclose(jax.grad(f)(3.0), first, rtol=1e-8)

    @jax.jit  # one program: the search is compiled once for all of them
    def derivatives(a):
        modes = (jax.jacfwd, jax.jacrev)
        pairs = [outer(inner(f))(a) for outer in modes for inner in modes]
        return [jac(f)(a) for jac in modes], pairs, jax.grad(jax.grad(jax.grad(f)))(a)

    found = derivatives(3.0)
    np.testing.assert_allclose(found[0], np.full(2, first), rtol=1e-8)
    np.testing.assert_allclose(found[1], np.full(4, second), rtol=1e-8)
    np.testing.assert_allclose(found[2], third, rtol=1e-7)


def test_function_closes_over_a_traced_array(x64):
    data = jnp.array([1.0, 4.0, 9.0])
    f = lambda a: js.solve(Root(lambda y, _: y**2 - a), Newton(), jnp.ones(3)).value
    both = jax.jit(lambda data: (jax.jacfwd(f)(data), jax.jacrev(f)(data)))
    for found in both(data):
        np.testing.assert_allclose(found, np.diag([0.5, 0.25, 1 / 6]), atol=1e-8)
    np.testing.assert_allclose(jax.vmap(f)(data[None] * 4.0)[0], [2, 4, 6], rtol=1e-8)


def test_any_pytree_and_static_leaves(x64):
    model = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=jax.random.key(0))
    x = jnp.linspace(-1, 1, 7)[:, None]

    def loss(model, targets):
        fit = jnp.mean((jax.vmap(model)(x)[:, 0] - targets) ** 2)
        weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        return fit + 1e-2 * sum(jnp.sum(w**2) for w in weights)

    def fitted(scale):
        solution = js.solve(Minimise(loss, scale * jnp.sin(x[:, 0])), LBFGS(), model)
        return solution.value

    network = fitted(1.0)
    assert isinstance(network, eqx.nn.MLP) and network.activation is model.activation
    predict = lambda scale: fitted(scale)(jnp.array([0.5]))[0]
    numeric = (predict(1.0 + 1e-4) - predict(1.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(predict)(1.0), numeric, rtol=1e-3)


def test_results_are_measured_and_raised():
    with pytest.raises(js.SolveError, match="max_steps_reached") as caught:
        js.solve(Root(cubic, 3.0), Newton(), jnp.array(1.0), max_steps=1)
    assert int(caught.value.solution.stats.steps) == 1
    with pytest.raises(js.SolveError, match="nonfinite_input"):
        js.solve(Root(cubic, jnp.nan), Newton(), jnp.array(1.0))
    with pytest.raises(js.SolveError, match="tolerance_below_dtype"):
        js.solve(Root(cubic, jnp.linspace(1, 9, 50)), Newton(), jnp.ones(50), tolerance=1e-20)
    solution = js.solve(Root(cubic, 3.0), Newton(), jnp.array(1.0), max_steps=0, throw=False)
    assert solution.result == RESULTS.max_steps_reached and int(solution.stats.steps) == 0
    assert not bool(solution.success)


def test_nothing_is_raised_in_traced_code():
    f = jax.jit(lambda a: js.solve(Root(cubic, a), Newton(), jnp.array(1.0), max_steps=1))
    assert f(3.0).result == RESULTS.max_steps_reached
    checked = jax.jit(
        lambda a: js.solve(Root(cubic, a), Newton(), jnp.array(1.0), max_steps=1).checked().value
    )
    with pytest.raises(Exception, match="step limit"):
        checked(3.0)


def test_a_failed_lane_is_nan_alone(x64):
    a = jnp.array([1.0, jnp.nan, 2.0, 1e3])
    start = jnp.array(1.0)

    def f(a, scale):
        problem = Root(lambda y, args: args[1] * y**3 + y - args[0], (a, scale))
        return js.solve(problem, Newton(), start, max_steps=6)

    values = jax.vmap(f, (0, None))(a, 1.0)
    good = np.asarray(values.success)
    np.testing.assert_array_equal(good, [True, False, True, False])
    gradient = jax.vmap(jax.grad(lambda a: f(a, 1.0).value))(a)
    y = np.asarray(values.value)
    np.testing.assert_allclose(gradient[good], root_derivative(y)[good], rtol=1e-8)
    assert np.isnan(gradient[~good]).all()

    # Lanes that the user masks leave the gradient of what all share finite.
    def loss(scale):
        out = jax.vmap(f, (0, None))(a, scale)
        return jnp.sum(jnp.where(out.success, out.value, 0.0))

    exact = np.sum(-(y**3) * root_derivative(y), where=good)
    np.testing.assert_allclose(jax.grad(loss)(1.0), exact, rtol=1e-7)


def mixed(y, a):
    """y^3 + y = a + the other one / 10."""
    x, z = y["float32"], y["float64"]
    return {
        "float32": (x**3 + x - a - 0.1 * z).astype(x.dtype),
        "float64": z**3 + z - a - 0.1 * x,
    }


def energy(y, a):
    x, z = y["float32"], y["float64"]
    own = lambda v: jnp.sum(v**4 / 4 + v**2 / 2 - a * v)
    return own(x) + own(z) - 0.1 * jnp.sum(x * z)


@pytest.mark.parametrize("kind", ["root", "minimise"])
def test_variables_of_two_dtypes_are_found_to_the_coarser(kind, x64):
    """x = z by symmetry: z^3 + 0.9 z = a, by NumPy."""
    start = {name: jnp.full(3, 0.2, name) for name in ("float32", "float64")}
    state = lambda a: Root(mixed, a) if kind == "root" else Minimise(energy, a)

    def value(a):
        return js.solve(state(a), init=start).value

    a = jnp.array(0.7)
    roots = np.roots([1, 0, 0.9, -0.7])
    z = roots[np.isreal(roots)].real[0]
    for name, leaf in value(a).items():
        assert leaf.dtype == name
        np.testing.assert_allclose(leaf, z, atol=1e-4)
    for name, leaf in jax.jit(jax.jacrev(value))(a).items():
        np.testing.assert_allclose(leaf, 1 / (3 * z**2 + 0.9), atol=1e-3, err_msg=name)
    near = js.solve(state(a), init=start, tolerance=1e-7, throw=False)
    assert near.result in (RESULTS.successful, RESULTS.tolerance_below_dtype)


def test_singular_solution_has_the_minimum_norm_derivative(x64):
    # (y0 + y1 - a)^2 has a valley of minimisers.
    fn = lambda y, a: (y[0] + y[1] - a) ** 2
    f = lambda a: js.solve(Minimise(fn, a), LBFGS(), jnp.zeros(2)).value
    for found in jax.jit(lambda a: (jax.jacfwd(f)(a), jax.jacrev(f)(a)))(1.0):
        np.testing.assert_allclose(found, [0.5, 0.5], rtol=1e-8)


@pytest.mark.parametrize(
    ("problem", "solver", "linear_solver"),
    [
        (Root, Newton(), None),
        (Root, Newton(), js.linear.GMRES()),
        (js.LeastSquares, js.LevenbergMarquardt(), js.linear.ConjugateGradient()),
        (js.LeastSquares, js.LevenbergMarquardt(js.QR()), js.linear.ConjugateGradient()),
    ],
    ids=["default", "GMRES", "Gram", "QR"],
)
def test_a_factor_of_a_singular_jacobian_is_not_used(problem, solver, linear_solver, x64):
    # Its solution satisfies the system and has any part in the null space.
    rng, n = np.random.default_rng(0), 24
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    sizes = np.append(np.linspace(1.0, 3.0, n - 2), [0.0, 0.0])
    matrix = left @ np.diag(sizes) @ right.T
    fn = lambda y, c: jnp.asarray(matrix) @ (y - c)
    adjoint = js.Implicit(linear_solver)
    f = lambda c: js.solve(problem(fn, c), solver, jnp.zeros(n), adjoint=adjoint).value
    c = jnp.asarray(rng.normal(size=n))
    for found in jax.jit(lambda c: (jax.jacfwd(f)(c), jax.jacrev(f)(c)))(c):
        np.testing.assert_allclose(found, np.linalg.pinv(matrix, 1e-9) @ matrix, atol=1e-9)


@pytest.mark.parametrize(
    "adjoint",
    [
        js.Implicit(js.linear.Dense()),
        js.Implicit(js.linear.GMRES()),
        js.Implicit(js.linear.NormalCG()),
        js.OneStep(),
        js.Unrolled(12),
        js.Unrolled(12, checkpoints=5),
    ],
    ids=repr,
)
def test_adjoints_agree(adjoint, x64):
    a = jnp.array([1.0, 2.0, 3.0])
    f = lambda a: js.solve(Root(cubic, a), Newton(), jnp.ones(3), adjoint=adjoint).value
    value, *found = jax.jit(lambda a: (f(a), jax.jacrev(f)(a), jax.jacfwd(f)(a)))(a)
    for jacobian in found:
        np.testing.assert_allclose(jacobian, np.diag(root_derivative(value)), atol=1e-7)


def test_detached_is_constant(x64):
    f = lambda a: js.solve(Root(cubic, a), Newton(), jnp.ones(()), adjoint=js.Detached()).value
    assert float(jax.grad(f)(2.0)) == 0.0


def test_unrolled_refuses_inner_loops():
    class Looping(Newton):
        def step(self, problem, state):
            state = super().step(problem, state)
            return jax.lax.while_loop(lambda _: jnp.array(False), lambda s: s, state)

    with pytest.raises(TypeError, match="Implicit"):
        js.solve(Root(cubic, 1.0), Looping(), jnp.array(1.0), adjoint=js.Unrolled(5))


def test_one_step_needs_a_full_step():
    with pytest.raises(TypeError, match="Implicit"):
        problem = Minimise(lambda y, a: (y - a) ** 2, 1.0)
        js.solve(problem, LBFGS(), jnp.array(1.0), adjoint=js.OneStep())


def test_backward_memory_does_not_grow_with_steps(x64):
    def f(a, steps):
        problem = Minimise(lambda y, a: jnp.sum((y - a) ** 4 + (y - a) ** 2), a)
        return js.solve(problem, LBFGS(), jnp.zeros(64), max_steps=steps, throw=False).value.sum()

    def memory(steps):
        lowered = jax.jit(jax.grad(f), static_argnums=1).lower(jnp.ones(64), steps)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(2000) == memory(20)


def test_warm_start(x64):
    problem = Minimise(lambda y, a: jnp.sum((y - a) ** 4 + jnp.cosh(y)), jnp.arange(5.0))
    first = js.solve(problem, LBFGS(), jnp.zeros(5))
    again = js.solve(problem, LBFGS(), first)
    assert int(again.stats.steps) <= 1 < int(first.stats.steps)
    np.testing.assert_allclose(again.value, first.value, atol=1e-8)
    # A solution of another solver is a guess of the value alone.
    other = js.solve(Root(lambda y, a: y - a, 1.0), Newton(), jnp.ones(5))
    assert bool(js.solve(problem, LBFGS(), other).success)


def test_history_keeps_the_last_residuals(x64):
    solution = js.solve(Root(cubic, 3.0), Newton(), jnp.array(1.0), record=3)
    steps = int(solution.stats.steps)
    whole = js.solve(Root(cubic, 3.0), Newton(), jnp.array(1.0), record=steps + 2).history
    assert np.isnan(whole[:2]).all()
    np.testing.assert_array_equal(solution.history, whole[-3:])
    np.testing.assert_allclose(whole[-1], solution.stats.residual.relative, atol=1e-12)


def test_second_eager_call_is_quick_and_new_data_does_not_retrace():
    traces = []

    def fn(y, a):
        traces.append(1)
        return y**3 + y - a

    f = lambda a: js.solve(Root(fn, a), Newton(), jnp.array(1.0)).value
    jax.block_until_ready((f(1.0), jax.grad(f)(1.0)))
    before = len(traces)
    quickest = min(_timed(lambda a=a: (f(a), jax.grad(f)(a))) for a in (2.0, 3.0, 4.0))
    assert len(traces) == before
    assert quickest < 0.02  # two calls


def _timed(fn):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


@pytest.mark.slow
def test_three_levels(x64):
    """A solve in the objective of a solve in the objective of a solve, against differences."""

    def bottom(b):
        fn = lambda y, b: jnp.sum(y**4 / 4 + y**2 / 2 - b * y)
        return js.solve(Minimise(fn, b), LBFGS(), jnp.ones(2)).value.sum()

    def middle(c):
        fn = lambda y, c: 0.5 * jnp.sum((y - c) ** 2) + bottom(y[0]) ** 2 / 10
        return js.solve(Minimise(fn, c), LBFGS(), jnp.ones(2)).value.sum()

    def top(d):
        fn = lambda y, d: 0.5 * jnp.sum((y - d) ** 2) + middle(y[0]) ** 2 / 10
        return js.solve(Minimise(fn, d), LBFGS(), jnp.ones(2), tolerance=1e-10).value.sum()

    def exact(d):
        # One equation a level, by bisection: the derivative of the inner value by closed form.
        root = lambda f, lo, hi: _bisect(f, lo, hi)
        inner = lambda b: root(lambda y: y**3 + y - b, -5.0, 5.0)
        inner_slope = lambda b: 1 / (3 * inner(b) ** 2 + 1)
        low = lambda c: root(lambda y: y - c + 0.8 * inner(y) * inner_slope(y), -5.0, 5.0)
        mid = lambda c: low(c) + c
        slope = lambda c: (mid(c + 1e-5) - mid(c - 1e-5)) / 2e-5
        return root(lambda y: y - d + mid(y) * slope(y) / 5, -5.0, 5.0) + d

    value, gradient = jax.jit(jax.value_and_grad(top))(1.5)
    np.testing.assert_allclose(value, exact(1.5), rtol=1e-6)
    np.testing.assert_allclose(gradient, (exact(1.501) - exact(1.499)) / 2e-3, rtol=1e-4)


def _bisect(f, low, high):
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma, x64, auto_mesh):
    spec = jax.sharding.PartitionSpec("lanes")
    problem = lambda a: Minimise(lambda y, a: jnp.sum((y - a) ** 4 / 4 + y**2), a)
    f = lambda a: js.solve(problem(a), LBFGS(), jnp.zeros(2), tolerance=1e-12).value.sum()
    a = jnp.linspace(0.0, 3.0, 16)
    sharded = jax.shard_map(
        jax.vmap(lambda a: (f(a), jax.grad(f)(a), jax.hessian(f)(a))),
        mesh=auto_mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=check_vma,
    )
    value, gradient, hessian = jax.jit(sharded)(a)
    y, a = np.asarray(value) / 2, np.asarray(a)
    np.testing.assert_allclose((y - a) ** 3 + 2 * y, 0, atol=1e-11)
    bend = 3 * (y - a) ** 2
    slope = bend / (bend + 2)
    np.testing.assert_allclose(gradient, 2 * slope, rtol=1e-9, atol=1e-12)
    expected = 24 * (y - a) * (slope - 1) / (bend + 2) ** 2
    np.testing.assert_allclose(hessian, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lanes", [None, js.Refill(width=2)])
def test_export_of_a_batch_of_any_size(lanes, x64):
    """The symbolic batch has the results of a batch of each size, hard lanes among easy ones."""
    value = lambda a: js.solve(Root(cubic, a), Newton(), jnp.array(1.0), lanes=lanes).value
    batch = jax.jit(jax.vmap(jax.value_and_grad(value)))
    shape = jax.export.symbolic_shape("lanes")
    exported = jax.export.export(batch)(jax.ShapeDtypeStruct(shape, jnp.float64))
    loaded = jax.export.deserialize(exported.serialize())
    for size in (1, 3, 300):
        data = jnp.logspace(-3, 6, size)
        found, slope = (np.asarray(x) for x in loaded.call(data))
        # The tolerance of the solve.
        np.testing.assert_allclose(found**3 + found, data, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(slope, root_derivative(found), rtol=1e-7)


def test_export_and_load(x64):
    value = lambda a: js.solve(Root(cubic, a), Newton(), jnp.array(1.0)).value
    f = jax.jit(jax.value_and_grad(value))
    exported = jax.export.export(f)(jnp.array(3.0))
    loaded = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(loaded.call(jnp.array(3.0)), f(jnp.array(3.0)))


def test_check_derivative(x64):
    problem = Minimise(lambda y, a: jnp.sum((y - a) ** 2), jnp.arange(3.0))
    solution = js.solve(problem, LBFGS(), jnp.zeros(3))
    assert float(js.check_derivative(problem, solution)) < 1e-10
    lost = Minimise(lambda y, a: y[0] ** 2 + 0 * y[1], None)
    solution = js.solve(lost, LBFGS(), jnp.ones(2))
    # Ones are not in the range of the singular Hessian: the unsolvable part is half of them.
    np.testing.assert_allclose(js.check_derivative(lost, solution), 0.5**0.5, rtol=1e-6)


BAD = {
    "no problem": (lambda: js.solve(cubic, init=1.0), TypeError, "Minimise"),
    "no init": (lambda: js.solve(Root(cubic, 1.0)), TypeError, "init"),
    "complex": (lambda: js.solve(Root(cubic, 1.0), init={"a": 1j}), TypeError, r"init\['a'\]"),
    "integer": (lambda: js.solve(Root(cubic, 1), init=jnp.array(1)), TypeError, "int32"),
    "not a solver": (lambda: js.solve(Root(cubic, 1.0), "newton", 1.0), TypeError, "solver"),
    "tolerance": (
        lambda: js.solve(Root(cubic, 1.0), init=1.0, tolerance=-1.0),
        ValueError,
        "tolerance",
    ),
    "max_steps": (
        lambda: js.solve(Root(cubic, 1.0), init=1.0, max_steps=1.5),
        TypeError,
        "max_steps",
    ),
    "verbose": (lambda: js.solve(Root(cubic, 1.0), init=1.0, verbose="x"), TypeError, "verbose"),
    "shapes": (
        lambda: js.solve(Root(lambda y, a: y[:1]), init=jnp.ones(2)),
        TypeError,
        r"float32\[1\].*float32\[2\]",
    ),
    "scalar": (lambda: js.solve(Minimise(lambda y, a: y), init=jnp.ones(2)), TypeError, "scalar"),
    "fixed point": (
        lambda: js.solve(FixedPoint(lambda y, a: {"b": y}), init=jnp.ones(2)),
        TypeError,
        "structure",
    ),
    "least squares": (
        lambda: js.solve(LeastSquares(lambda y, a: ()), init=jnp.ones(2)),
        TypeError,
        "no residuals",
    ),
}


def of_squares(**settings):
    return js.solve(Minimise(lambda y, args: jnp.sum(y**2)), init=jnp.ones(2), **settings)


SETTINGS = {
    "Unrolled: `steps` must be at least 1; got 0": lambda: js.Unrolled(0),
    "Unrolled: `steps` must be a whole number; got 2.5": lambda: js.Unrolled(2.5),
    "Smoothed: `kappa` must be positive; got -1.0": lambda: js.Smoothed(-1.0),
    "Implicit: `linear_solver` must be a method": lambda: js.Implicit(linear_solver=3),
    "Implicit: `degenerate` must be MinimumNorm": lambda: js.Implicit(degenerate=None),
    "Refill: `width` must be at least 1; got 0": lambda: js.Refill(0),
    "LBFGS: `memory` must be at least 1; got 0": lambda: LBFGS(memory=0),
    "Anderson: `memory` must be at least 1; got -1": lambda: js.Anderson(memory=-1),
    "Broyden: `start` must be a first inverse": lambda: js.Broyden(start=2),
    "`factorisation` must be Gram": lambda: js.LevenbergMarquardt(factorisation="qr"),
    "Neumann: `terms` must be at least 1; got 0": lambda: js.linear.Neumann(0),
    "`rtol` must be positive; got -1.0": lambda: js.linear.ConjugateGradient(rtol=-1.0),
    "Minimise: `fn` must be a function": lambda: Minimise(3),
    "`tolerance` must be a number; got 'a'": lambda: of_squares(tolerance="a"),
    "solve: `lanes` must be Refill": lambda: of_squares(lanes=3),
    "solve: `adjoint` must be an adjoint": lambda: of_squares(adjoint="implicit"),
}
BAD |= {text: (call, (TypeError, ValueError), re.escape(text)) for text, call in SETTINGS.items()}


@pytest.mark.fast
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


HALF_MATRIX = np.array([[1.2, 0.3], [0.3, 0.9]])
"""x with HALF_MATRIX x = b is sought in half precision; its derivative is the matrix' inverse."""


def _half(kind, solver, b):
    matrix = jnp.asarray(HALF_MATRIX, b.dtype)
    residuals = lambda x, b: jnp.matmul(matrix, x) - b
    problem = {
        js.Minimise: lambda: js.Minimise(lambda x, b: x @ (residuals(x, b) - b) / 2, b),
        js.LeastSquares: lambda: js.LeastSquares(residuals, b),
        js.Root: lambda: js.Root(residuals, b),
        js.FixedPoint: lambda: js.FixedPoint(lambda x, b: x - residuals(x, b) / 2, b),
        js.Composite: lambda: js.Composite(
            lambda x, b: jnp.sum(residuals(x, b) ** 2), js.penalties.L1(jnp.zeros_like(b)), b
        ),
    }[kind]()
    return js.solve(problem, solver, init=jnp.zeros_like(b), key=jax.random.key(0), throw=False)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        (js.Minimise, js.LBFGS()),
        (js.Minimise, js.TrustRegionNewton()),
        (js.FixedPoint, js.Anderson()),
    ],
    ids=["LBFGS", "TrustRegionNewton", "Anderson"],
)
def test_derivatives_of_half_precision_are_solved_for_in_float32(kind, solver, dtype):
    b = jnp.array([1.0, 0.5], dtype)
    value, pullback = jax.vjp(lambda b: _half(kind, solver, b).value, b)
    inverse = np.linalg.inv(HALF_MATRIX)
    eps = float(jnp.finfo(dtype).eps)
    # The value is as near as the tolerance asks, the derivative as the dtype allows.
    np.testing.assert_allclose(value.astype(float), inverse @ [1, 0.5], atol=2 * eps**0.5)
    for k, unit in enumerate(jnp.eye(2, dtype=dtype)):
        (gradient,) = pullback(unit)
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient.astype(float), inverse[k], atol=20 * eps)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        (js.LeastSquares, js.LevenbergMarquardt()),
        (js.LeastSquares, js.SketchPreconditionedCG(js.CountSketch(rows=2))),
        (js.LeastSquares, js.SketchedLeastSquares(js.CountSketch(rows=2))),
        (js.Root, js.Newton()),
        (js.Root, js.Broyden()),
        (js.Composite, js.ProximalGradient()),
        (js.Composite, js.BlockCoordinateDescent()),
    ],
    ids=lambda x: "" if isinstance(x, type) else type(x).__name__,
)
def test_solvers_that_factor_a_matrix_refuse_half_precision(kind, solver):
    with pytest.raises(TypeError, match=rf"{type(solver).__name__}: `init` has dtype bfloat16"):
        _half(kind, solver, jnp.ones(2, jnp.bfloat16))
