"""What a run leaves, and that an interrupted one goes on where it was."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.experiments import Experiment, Figure, Findings, carry_out, experiments, read_record
from jaxsolve.experiments.store import Store


@dataclass(frozen=True)
class Settings:
    steps: int = 6


def experiment(run, dtype="float32"):
    return Experiment("a-walk", "A random walk.", dtype, run, Settings(), Settings(12))


def walk(settings, run):
    """A seeded walk; the figure is where it ends."""

    def step(i, state):
        move = jax.random.normal(jax.random.fold_in(jax.random.key(run.seed), i), state.shape)
        return state + move, {"size": jnp.max(jnp.abs(state)), "at": state}

    end, records, seconds = run.loop("walk", jnp.zeros(3), step, settings.steps)
    assert records["at"].shape == (settings.steps, 3) and seconds > 0
    figures = (
        Figure("end", end[0], "m", "walking", 1.0, "lower", "a | bar"),
        Figure("lost", float("nan"), "", "walking", None, "higher", ""),
    )
    return Findings(figures, f"# Walk\n\n{records['size'].tolist()}\n", {"path": _plot()})


def _plot():
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(1, 1))
    plot.subplots().plot([0, 1])
    return plot


def test_a_run_leaves_the_documented_files(tmp_path):
    record = carry_out(experiment(walk), tmp_path, seed=3, full=True)
    folder = tmp_path / "a-walk"
    assert {p.name for p in folder.iterdir()} == {"figures.json", "table.md", "path.png"}
    data = json.loads((folder / "figures.json").read_text())
    assert list(data) == "experiment seed full seconds device dtype versions figures".split()
    assert (data["experiment"], data["seed"], data["full"]) == ("a-walk", 3, True)
    assert data["dtype"] == "float32" and "jax" in data["versions"] and data["seconds"] > 0
    for figure in data["figures"]:
        assert list(figure) == "name value unit method baseline better source".split()
    assert data["figures"][1]["value"] is None, "JSON holds no NaN"
    assert read_record(folder / "figures.json") == record
    assert (folder / "path.png").read_bytes().startswith(b"\x89PNG")


def test_everything_random_follows_from_the_seed(tmp_path):
    ends = [
        carry_out(experiment(walk), tmp_path / str(i), seed=seed).figures[0].value
        for i, seed in enumerate((5, 5, 6))
    ]
    assert ends[0] == ends[1] != ends[2]


def test_old_plots_do_not_survive_a_new_run(tmp_path):
    (tmp_path / "a-walk").mkdir()
    (tmp_path / "a-walk" / "stale.png").write_bytes(b"")
    carry_out(experiment(walk), tmp_path)
    assert not (tmp_path / "a-walk" / "stale.png").exists()


def test_the_dtype_is_set_for_the_run_alone(tmp_path):
    seen = []

    def run(settings, run):
        seen.append(jnp.zeros(()).dtype)
        return Findings((), "", {})

    for dtype in ("float64", "float32"):
        carry_out(experiment(run, dtype), tmp_path)
    assert seen == ["float64", "float32"] and jnp.zeros(()).dtype == "float32"


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, changed):
    steps = []

    def interrupted(settings, run):
        def step(i, state):
            if i == 4 and not steps.count(4):
                steps.append(i)
                raise KeyboardInterrupt
            steps.append(i)
            return state + jnp.array([i, 1.0]), {"at": state}

        start = jnp.zeros(2)
        first, _, _ = run.loop("one", start, lambda i, s: (s + 1, {"at": s}), 2)
        end, records, _ = run.loop("two", first, step, settings.steps)
        figure = Figure("end", end[0], "", "", None, "lower", "")
        return Findings((figure,), str(records["at"].tolist()), {})

    with pytest.raises(KeyboardInterrupt):
        carry_out(experiment(interrupted), tmp_path)
    assert (tmp_path / "a-walk" / "unfinished" / "two.npz").exists()
    record = carry_out(experiment(interrupted), tmp_path, seed=int(changed))
    again = [0, 1, 2, 3] if changed else []
    assert steps == [0, 1, 2, 3, 4, *again, 4, 5], "another seed never resumes this run"
    assert record.figures[0].value == 2 + sum(range(6))
    assert not (tmp_path / "a-walk" / "unfinished").exists()

    whole = carry_out(experiment(interrupted), tmp_path / "whole")
    assert whole.figures == record.figures
    tables = [(p / "a-walk" / "table.md").read_text() for p in (tmp_path, tmp_path / "whole")]
    assert tables[0] == tables[1]


def test_a_damaged_store_is_not_resumed(tmp_path):
    store = Store(tmp_path / "s", "mark")
    store.save("loop", 2, jnp.ones(3), [{"a": jnp.ones(())}] * 2, 1.5)
    done, state, records, seconds = Store(tmp_path / "s", "mark").load("loop", jnp.zeros(3))
    assert (done, len(records), seconds) == (2, 2, 1.5) and np.all(state == 1)
    assert store.load("loop", jnp.zeros(4))[0] == 0, "another shape"
    (tmp_path / "s" / "loop.npz").write_bytes(b"PK\x03\x04 not an archive")
    assert store.load("loop", jnp.zeros(3))[0] == 0
    np.savez(tmp_path / "s" / "loop.npz", state0=np.array([{}], dtype=object))
    assert store.load("loop", jnp.zeros(3))[0] == 0, "no pickles are read"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: d.pop("seed"), "keys"),
        (lambda d: d.update(extra=1), "keys"),
        (lambda d: d.update(seed="0"), "'seed'"),
        (lambda d: d.update(seed=True), "'seed'"),
        (lambda d: d["figures"][0].update(value="1"), r"figures\[0\]"),
        (lambda d: d["figures"][0].update(better="best"), "better"),
        (lambda d: d["figures"].append(1), r"figures\[2\]"),
        (lambda d: d["versions"].update(jax=1), "jax"),
    ],
)
def test_other_forms_of_figures_are_refused(tmp_path, change, said):
    carry_out(experiment(walk), tmp_path)
    path = tmp_path / "a-walk" / "figures.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=said):
        read_record(path)


def test_experiments_are_found_by_name():
    found = experiments()
    assert list(found) == sorted(found)
    for name, one in found.items():
        assert name == one.name and one.summary and type(one.quick) is type(one.full)


@pytest.mark.parametrize(
    "value, baseline, better, wins",
    [(1.0, 2.0, "lower", True), (1.0, 2.0, "higher", False), (1.0, 1.0, "higher", True),
     (None, 1.0, "lower", None), (1.0, None, "lower", None)],
)  # fmt: skip
def test_who_wins(value, baseline, better, wins):
    assert Figure("", value, "", "", baseline, better, "").wins is wins
