"""The command line, run as a user runs it, on an experiment that takes no time."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from jaxsolve import cli, experiments
from jaxsolve.experiments import Experiment, Figure, Findings


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run("list")`: the outcome of `jaxsolve list`."""

    def tiny(settings, run):
        end, _, _ = run.loop("count", 0, lambda i, s: (s + 1, {}), settings)
        return Findings((Figure("n [b]", end, "m", "x", 2.0, "lower", "y"),), "# T", {})

    def stopped(settings, run):
        raise KeyboardInterrupt

    known = {
        "tiny": Experiment("tiny", "The [smallest].", "float32", tiny, 3, 4),
        "stopped": Experiment("stopped", "Never ends.", "float32", stopped, 0, 0),
    }
    monkeypatch.setattr(experiments, "experiments", lambda: known)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *words: CliRunner().invoke(cli.build(), words)


def test_list(run):
    done = run("list")
    assert done.exit_code == 0 and "tiny" in done.stdout and "The [smallest]." in done.stdout


def test_run_and_report(run, tmp_path):
    done = run("run", "tiny", "--seed", "4", "--full")
    assert done.exit_code == 0, done.output
    assert "seed 4, full" in done.stdout and "n [b]" in done.stdout and "out/tiny" in done.stdout
    done = run("report")
    assert done.exit_code == 0 and "n [b]" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"Report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").exists()


def test_an_unknown_name_gets_a_hint(run):
    done = run("run", "tinny")
    assert done.exit_code == 2 and "'tiny'" in done.output


def test_a_negative_seed_is_refused(run):
    assert run("run", "tiny", "--seed", "-1").exit_code == 2


def test_a_report_of_nothing(run):
    done = run("report", "--out", "nowhere")
    assert done.exit_code == 1 and "jaxsolve run" in done.output


def test_an_interrupted_run_says_how_to_go_on(run):
    done = run("run", "stopped")
    assert done.exit_code == 130 and "same command" in done.output


@pytest.mark.parametrize("absent", ["typer", "rich", "matplotlib", "sklearn"])
def test_without_the_extra(absent):
    code = f"import sys; sys.modules[{absent!r}] = None; from jaxsolve.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and 'pip install "jaxsolve[cli]"' in done.stderr
    assert f"({absent} is missing)" in done.stderr and "Traceback" not in done.stderr


def test_what_is_listed_is_what_the_documents_name():
    assert {"hyperparameters", "svm-layer"} <= set(experiments.experiments())
