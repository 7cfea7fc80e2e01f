"""`jaxsolve list | run | report`. Needs the extra `cli`; importing this file needs nothing."""

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

MISSING = (
    "The command line needs packages that are not installed ({name} is missing):\n\n"
    '    pip install "jaxsolve[cli]"'
)


def main() -> None:
    """The entry point `jaxsolve`."""
    try:
        app = build()
    except ModuleNotFoundError as error:
        sys.exit(MISSING.format(name=(error.name or "one").partition(".")[0]))
    app()


def build() -> Any:
    """The typer application.

    Raises:
        ModuleNotFoundError: the extra `cli` is not installed.
    """
    import matplotlib
    import sklearn  # noqa: F401  all that a run will need: missing now, not after a minute
    import typer
    from rich.console import Console

    matplotlib.use("Agg")
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        help="Experiments on real data, each against an honest baseline.",
    )
    console = Console()
    folder = "Folder of the runs, one folder in it each."

    @app.command("list")
    def list_experiments() -> None:
        """The experiments, a line each."""
        from .experiments import experiments

        found = experiments()
        width = max(map(len, found))
        for name, experiment in found.items():
            console.print(f"{name:<{width}}  {experiment.summary}", markup=False, soft_wrap=True)

    @app.command()
    def run(
        name: Annotated[str, typer.Argument(help="As `jaxsolve list` shows it.")],
        out: Annotated[Path, typer.Option(help=folder)] = Path("out"),
        seed: Annotated[int, typer.Option(min=0, help="All that is random follows from it.")] = 0,
        full: Annotated[bool, typer.Option("--full", help="At full size: takes longer.")] = False,
    ) -> None:
        """Run one, and write its figures, table and plots. Interrupted, it goes on where it was."""
        import jax

        from .experiments import carry_out, experiments

        found = experiments()
        if name not in found:
            close = get_close_matches(name, found, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            names = ", ".join(found)
            raise typer.BadParameter(f"There is no experiment {name!r}.{hint} There are: {names}.")
        if found[name].cpu_devices > 1:
            jax.config.update("jax_num_cpu_devices", found[name].cpu_devices)
        try:
            with _bar(console) as progress:
                record = carry_out(found[name], out, seed=seed, full=full, progress=progress)
        except KeyboardInterrupt:
            console.print("\nInterrupted. The same command goes on from here.")
            raise typer.Exit(130) from None
        _show(console, record)
        console.print(f"Written to {out / name}", soft_wrap=True, highlight=False)

    @app.command()
    def report(out: Annotated[Path, typer.Option(help=folder)] = Path("out")) -> None:
        """Gather all runs into one HTML page."""
        from .experiments import write_report

        try:
            page, records = write_report(out)
        except FileNotFoundError as error:
            console.print(str(error), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        for record in records:
            _show(console, record)
        console.print(f"Report: {page.resolve()}", markup=False, soft_wrap=True, highlight=False)

    return app


def _bar(console: Any) -> Any:
    """A context whose value is told `(stage, done, total)`: a line a stage."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextmanager
    def bars():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            tasks = {}

            def tell(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done)

            yield tell

    return bars()


def _show(console: Any, record: Any) -> None:
    """The figures of a run as a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from .experiments.report import shown

    size = "full" if record.full else "quick"
    title = f"{record.experiment} (seed {record.seed}, {size}, {record.seconds:.0f} s)"
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE)
    methods = {figure.method for figure in record.figures}
    table.add_column("figure")
    if len(methods) > 1:
        table.add_column("method")
    else:
        table.caption, table.caption_justify = escape("".join(methods)), "left"
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("better")
    table.add_column("baseline is")
    for figure in record.figures:
        style = {True: "green", False: "red", None: ""}[figure.wins]
        value = escape(shown(figure, figure.value))
        table.add_row(
            escape(figure.name),
            *([escape(figure.method)] if len(methods) > 1 else []),
            f"[{style}]{value}[/]" if style else value,
            escape(shown(figure, figure.baseline)),
            figure.better,
            escape(figure.source),
        )
    console.print(table)


if __name__ == "__main__":
    main()
