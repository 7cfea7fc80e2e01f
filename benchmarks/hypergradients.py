"""One hypergradient, and batches of hyper-parameter problems, beside peers.

1. Ridge-regularised logistic regression with one log-weight a feature, float64: the lower level is
   solved beforehand, and all methods find the hypergradient of the validation loss at that solution
   by conjugate gradients on the same system, to the same residual (1e-8). jaxopt: a solver with
   `implicit_diff=True`, started at the solution. TorchOpt: `torchopt.diff.implicit.custom_root`.
   Betty: its function `betty.hypergradient.cg`, whose number of iterations is set to what conjugate
   gradients need; its next direction is made of the old residual in the place of the new one
   (0.1.1), so that it is wrong from the second iteration on. By hand: `jax.jvp` and `lineax.CG`.
   The error is that against a dense solve.
2. A lower level of 10^5 parameters, float32, on hashed sparse features: `hypergradient` beside the
   same linear solve by hand, which checks nothing and does not look whether the lower level is
   solved.
3. 128 problems of 1., whole, under vmap beside one after another under jit (both compiled); and
   what bounds that: the gradient of the lower level, the mean of 50 in one loop, of one problem and
   of all of them, in microseconds a problem.

TorchOpt and Betty want PyTorch, and are not among the locked requirements: install them beside
(`pip install torchopt betty-ml`) and they are run.

    taskset -c 0 python -m benchmarks.hypergradients
"""

import time
import types
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpy as np

import jaxsolve as js

from .side_by_side import Timing, figure, interleaved, markdown, number, write

TEXT = (__doc__ or "").split("\n", 2)[2].rsplit("\n\n", 2)[0]
SHAPES = ((500, 30), (2000, 500))
RTOL = 1e-8
LARGE, ROWS, ENTRIES = 100_000, 2_000, 50
PROBLEMS, GRADIENTS = 128, 50


def logistic(seed, samples, features, dtype=np.float64):
    """Training and validation halves: (features, labels) each."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, features)).astype(dtype)
    truth = rng.normal(size=features) * (rng.random(features) < 0.4)
    noise = 2 * rng.normal(size=samples)
    labels = np.sign(inputs @ truth + noise).astype(dtype)
    half = samples // 2
    return (inputs[:half], labels[:half]), (inputs[half:], labels[half:])


def loss(y, data):
    return jnp.mean(jax.nn.softplus(-data[1] * jnp.matmul(data[0], y, precision="highest")))


def upper(x, y, args):
    return loss(y, args[1]) + 5e-4 * jnp.sum((x + 4) ** 2)


def lower(x, y, args):
    return loss(y, args[0]) + 0.5 * jnp.sum(jnp.exp(x) * y**2)


def by_hand(upper, lower, atol):
    """The linear solve that `Implicit` does, and nothing else."""

    def run(x, y, args):
        slope = jax.grad(upper, 1)(x, y, args)
        gradient = lambda y: jax.grad(lower, 1)(x, y, args)
        operator = lx.FunctionLinearOperator(
            lambda v: jax.jvp(gradient, (y,), (v,))[1],
            jax.eval_shape(lambda: y),
            lx.positive_semidefinite_tag,
        )
        # Its own test is entry by entry, and never passes where entries of the right side are 0.
        solver = lx.CG(rtol=1e-12, atol=atol, max_steps=500, norm=jnp.linalg.norm)
        v = lx.linear_solve(operator, -slope, solver, throw=False).value
        cross = jax.grad(lambda x: jnp.vdot(jax.grad(lower, 1)(x, y, args), v))(x)
        return jax.grad(upper, 0)(x, y, args) + cross

    return jax.jit(run)


def by_jaxopt(x, y, args):
    def reduced(x):
        solver = jaxopt.LBFGS(
            lambda y, x: lower(x, y, args),
            tol=1e-7,
            implicit_diff=True,
            implicit_diff_solve=lambda matvec, b: jaxopt.linear_solve.solve_cg(
                matvec, b, tol=RTOL, maxiter=1000
            ),
        )
        return upper(x, solver.run(y, x).params, args)

    return jax.grad(reduced)(x)


def ours(x, y, args):
    method = js.linear.ConjugateGradient(rtol=RTOL)
    problem = js.Bilevel(upper, lower, args)
    return js.hypergradient(problem, (x, y), linear_solver=method, tolerance=1e-7).gradient


def ours_default(x, y, args):
    return js.hypergradient(js.Bilevel(upper, lower, args), (x, y), tolerance=1e-7).gradient


def by_torch(x, y, args, steps):
    """The calls of TorchOpt and Betty, or why there are none."""
    try:
        import torch
        import torchopt
        from betty.hypergradient.cg import cg
    except ImportError as error:
        missing = f"not installed ({error.name})"
        return {"TorchOpt": missing, "Betty": missing}
    torch.set_num_threads(1)
    tensor = lambda a: torch.tensor(np.asarray(a))
    tx, ty = tensor(x), tensor(y)
    data = [[tensor(a) for a in part] for part in args]

    def t_loss(y, part):
        return torch.nn.functional.softplus(-part[1] * (part[0] @ y)).mean()

    def t_upper(x, y):
        return t_loss(y, data[1]) + 5e-4 * ((x + 4) ** 2).sum()

    def t_lower(y, x):
        return t_loss(y, data[0]) + 0.5 * (torch.exp(x) * y**2).sum()

    def optimality(y, x):
        return torch.func.grad(t_lower)(y, x)

    @torchopt.diff.implicit.custom_root(
        optimality,
        argnums=1,
        solve=torchopt.linear_solve.solve_cg(rtol=RTOL, atol=0.0, maxiter=1000),
    )
    def solution(y, x):
        return y

    def run_torchopt():
        own = tx.clone().requires_grad_()
        start = ty.clone().requires_grad_()
        return torch.autograd.grad(t_upper(own, solution(start, own)), own)[0].numpy()

    def run_betty():
        own, start = tx.clone().requires_grad_(), ty.clone().requires_grad_()
        level = types.SimpleNamespace(
            paths=[],
            config=types.SimpleNamespace(cg_iterations=steps, cg_alpha=1.0),
            training_step_exec=lambda batch: t_lower(start, own),
            cur_batch=None,
            trainable_parameters=lambda: [start],
            parameters=lambda: [start],
        )
        above = types.SimpleNamespace(trainable_parameters=lambda: [own])
        direct, slope = torch.autograd.grad(t_upper(own, start), (own, start))
        return (direct + cg([slope], level, above)[0]).detach().numpy()

    return {"TorchOpt": run_torchopt, "Betty": run_betty}


def small(samples, features):
    """The first comparison at one size: timings and errors."""
    train, valid = logistic(0, samples, features)
    args = jax.tree.map(jnp.asarray, (train, valid))
    x = jnp.full(features, -4.0)
    problem = js.Minimise(lambda y, a: lower(a[0], y, a[1]), (x, args))
    y = js.solve(problem, js.TrustRegionNewton(), jnp.zeros(features), tolerance=1e-11).value
    hessian = jax.hessian(lambda y: lower(x, y, args))(y)
    slope = jax.grad(upper, 1)(x, y, args)
    v = jnp.linalg.solve(hessian, -slope)
    cross = jax.jacfwd(jax.grad(lower, 1))(x, y, args)
    exact = np.asarray(jax.grad(upper)(x, y, args) + cross.T @ v)
    steps = cg_steps(np.asarray(hessian), np.asarray(slope))
    hand = by_hand(upper, lower, RTOL * float(jnp.linalg.norm(slope)))
    compiled = {
        "jaxsolve": jax.jit(ours),
        "jaxsolve, default solver": jax.jit(ours_default),
        "by hand, lineax": hand,
        "jaxopt": jax.jit(by_jaxopt),
    }
    calls = {name: (lambda fn=fn: fn(x, y, args)) for name, fn in compiled.items()}
    torch_calls = by_torch(x, y, args, steps)
    calls |= {name: call for name, call in torch_calls.items() if callable(call)}
    timed = interleaved(calls)
    timed |= {name: why for name, why in torch_calls.items() if not callable(why)}
    size = np.linalg.norm(exact)
    errors = {
        name: float(np.linalg.norm(np.asarray(one.out) - exact) / size)
        for name, one in timed.items()
        if isinstance(one, Timing)
    }
    return timed, errors


def cg_steps(matrix, right):
    """How many steps conjugate gradients need."""
    x, r = np.zeros_like(right), right.copy()
    p, steps = r.copy(), 0
    while np.linalg.norm(r) > RTOL * np.linalg.norm(right):
        q = matrix @ p
        alpha = (r @ r) / (p @ q)
        x, new = x + alpha * p, r - alpha * q
        p, r, steps = new + (new @ new) / (r @ r) * p, new, steps + 1
    return steps


def large():
    """The second comparison, in float32."""
    rng = np.random.default_rng(0)

    def part():
        places = jnp.asarray(rng.integers(0, LARGE, size=(ROWS, ENTRIES)))
        return places, jnp.asarray(np.sign(rng.normal(size=ROWS)), jnp.float32)

    args = part(), part()

    def sparse(y, data):
        return jnp.sum(jax.nn.softplus(-data[1] * jnp.sum(y[data[0]], axis=1)))

    def above(x, y, args):
        return sparse(y, args[1])

    def below(x, y, args):
        return sparse(y, args[0]) + 0.5 * jnp.sum(jnp.exp(x) * y**2)

    x = jnp.full(LARGE, 1.0, jnp.float32)
    problem = js.Minimise(lambda y, a: below(a[0], y, a[1]), (x, args))
    y = js.solve(problem, init=jnp.zeros_like(x), tolerance=1e-3).value
    rtol = 1e-5
    slope = jax.grad(above, 1)(x, y, args)
    method = js.linear.ConjugateGradient(rtol=rtol)
    whole = js.Bilevel(above, below, args)
    with_ours = jax.jit(
        lambda x, y: js.hypergradient(whole, (x, y), linear_solver=method, tolerance=1e-3).gradient
    )
    hand = by_hand(above, below, rtol * float(jnp.linalg.norm(slope)))
    timed = interleaved(
        {"jaxsolve": lambda: with_ours(x, y), "by hand, lineax": lambda: hand(x, y, args)}
    )
    outs = [np.asarray(timed[name].out) for name in timed]
    apart = float(np.linalg.norm(outs[0] - outs[1]) / np.linalg.norm(outs[1]))
    memory = with_ours.lower(x, y).compile().memory_analysis().temp_size_in_bytes / x.nbytes
    return timed, apart, memory


def batches():
    """The third comparison, in float32."""
    lanes = [logistic(seed, 500, 30, np.float32) for seed in range(PROBLEMS)]
    stacked = jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *lanes)
    start = jnp.full(30, -4.0, jnp.float32), jnp.zeros(30, jnp.float32)

    def one(args):
        problem = js.Bilevel(upper, lower, args)
        solution = js.solve(problem, init=start, tolerance=1e-4, throw=False)
        return solution.value[0], solution.result == js.RESULTS.successful

    single, batch = jax.jit(one), jax.jit(jax.vmap(one))
    each = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(PROBLEMS)]
    calls = {
        "vmap": lambda: batch(stacked),
        "one after another": lambda: [single(args) for args in each],
    }
    timed = interleaved(calls, turns=5)
    solved = int(np.sum(np.asarray(timed["vmap"].out[1])))

    def gradients(args):
        move = lambda _, y: 0.5 * y - 0.1 * jax.grad(lower, 1)(start[0], y, args)
        return jax.lax.fori_loop(0, GRADIENTS, move, start[1])

    alone, all_lanes = jax.jit(gradients), jax.jit(jax.vmap(gradients))
    bound = interleaved(
        {"vmap": lambda: all_lanes(stacked), "one problem": lambda: alone(each[0])}, turns=5
    )
    lanes_of = {"vmap": PROBLEMS, "one problem": 1}
    each_takes = {k: 1e3 * bound[k].cpu / GRADIENTS / n for k, n in lanes_of.items()}
    return timed, solved, each_takes


def main():
    begun = time.perf_counter()
    figures, parts = [], []
    with jax.enable_x64(True):
        for samples, features in SHAPES:
            timed, errors = small(samples, features)
            rows = []
            ours_ms = timed["jaxsolve"].cpu
            for name, one in timed.items():
                if not isinstance(one, Timing):
                    rows.append([name, one, "", "", ""])
                    continue
                rows.append([name, number(one.cpu), number(one.milliseconds),
                             number(one.first_seconds), f"{errors[name]:.1e}"])  # fmt: skip
                label = f"hypergradient, {samples} x {features}"
                figures.append(figure(label, one.cpu, "ms", name, ours_ms))
            header = ["method", "CPU, ms", "clock, ms", "first call, s", "relative error"]
            parts.append(f"## {samples} samples, {features} features\n\n{markdown(header, rows)}")
    timed, apart, memory = large()
    rows = [
        [name, number(one.cpu), number(one.milliseconds), number(one.first_seconds)]
        for name, one in timed.items()
    ]
    ratio = timed["jaxsolve"].cpu / timed["by hand, lineax"].cpu
    figures.append(figure("10^5 parameters, time over that by hand", ratio, "", "jaxsolve", 4.0))
    figures.append(figure("10^5 parameters, temporary memory", memory, "vectors", "jaxsolve"))
    table = markdown(["method", "CPU, ms", "clock, ms", "first call, s"], rows)
    parts.append(
        f"## 10^5 parameters\n\n{table}\n\nThe two differ by {apart:.1e}. Ours takes {ratio:.2f} "
        f"times as long, and {memory:.0f} vectors of temporary memory."
    )
    timed, solved, each_takes = batches()
    rows = [
        [name, number(one.cpu), number(one.milliseconds), number(one.first_seconds)]
        for name, one in timed.items()
    ]
    ratio = timed["one after another"].milliseconds / timed["vmap"].milliseconds
    figures.append(figure(f"{PROBLEMS} problems, speed-up of vmap", ratio, "", "jaxsolve", 10.0,
                          "higher", "the goal; one after another under jit, same run"))  # fmt: skip
    table = markdown(["method", "CPU, ms", "clock, ms", "first call, s"], rows)
    parts.append(
        f"## {PROBLEMS} hyper-parameter problems\n\n{table}\n\n{solved} of {PROBLEMS} are solved; "
        f"vmap is {ratio:.2f} times as fast. A gradient of the lower level takes "
        f"{each_takes['vmap']:.2f} us a problem under vmap, "
        f"{each_takes['one problem']:.2f} us of one problem alone."
    )
    installed = [name for name in ("torch", "torchopt", "betty-ml") if find_spec(name[:5])]
    write(
        "hypergradients",
        figures,
        "# Hypergradients\n\n" + "\n\n".join([TEXT, *parts]).rstrip() + "\n",
        seconds=time.perf_counter() - begun,
        dtype="float64, float32",
        packages=("jaxsolve", "jax", "jaxopt", "lineax", *installed),
    )


if __name__ == "__main__":
    main()
