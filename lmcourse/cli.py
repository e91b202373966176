"""The command ``lmcourse``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lmcourse import CourseError, book, doctor, homework
from lmcourse.grading import engine, export, report, sample_class


class Commands(typer.core.TyperGroup):
    """Commands which say in one sentence what a person can mend."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except CourseError as error:
            typer.secho(f"lmcourse: {error}", fg="red", err=True)
            raise typer.Exit(code=1) from error


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False)
Unit = Annotated[str, typer.Argument(help="a unit's name, such as 08_attention")]


@app.callback()
def main() -> None:
    """The teacher's tools: build the book, release homework, grade a class."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    typer.secho(f"• {title} ...", bold=True)
    start = time.perf_counter()
    yield
    typer.echo(f"  {time.perf_counter() - start:.1f} s")


@app.command()
def course() -> None:
    """Do everything once: release, build the book, grade the sample class, report."""
    start = time.perf_counter()
    graded = 0
    with step("Releasing the homework"):
        for unit in homework.units():
            homework.build(unit)
        homework.build_kit()
    with step("Building the book"):
        site = book.build()
    for unit in homework.units():
        with step(f"Grading the sample class of {unit}"):
            sample_class.write_sample_class(unit)
            graded += engine.grade_folder(unit).submissions
            report.write_report(unit)
    book.publish_reports()
    typer.echo(
        f"\n{site.pages} pages, {graded} submissions graded, "
        f"{time.perf_counter() - start:.1f} s in all.\n"
        f"The book: {site.folder / 'index.html'} (open it, or run: make serve)"
    )


@app.command("book")
def build_book() -> None:
    """Build the book with warnings as errors."""
    site = book.build()
    typer.echo(f"{site.pages} pages in {site.folder}")


@app.command()
def serve(port: int = 8000) -> None:
    """Show the built book on this machine until Ctrl-C."""
    book.serve(port)


@app.command()
def release(
    unit: Annotated[str | None, typer.Argument(help="all units if left out")] = None,
    kit: Annotated[bool, typer.Option(help="also make the students' zip")] = False,
) -> None:
    """Build the homework as students get it, from solutions/ and lmcore."""
    for name in [unit] if unit else homework.units():
        typer.echo(homework.build(name))
    if kit:
        typer.echo(homework.build_kit())


@app.command("sample-class")
def make_sample_class(unit: Unit) -> None:
    """Write a dozen submissions to try the grader on."""
    for student in sample_class.write_sample_class(unit):
        typer.echo(student)


@app.command()
def grade(
    unit: Unit,
    submitted: Annotated[
        Path | None,
        typer.Argument(
            help="a zip of Canvas or Moodle, a folder of notebooks, or one like "
            "nbgrader's submitted/; the course's own if left out"
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="submissions at a time; a core each if left out")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="grade on a Dask cluster, such as tcp://10.0.0.7:8786"),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda: run the checks on a GPU")] = "cpu",
    unsafe: Annotated[
        bool, typer.Option(help="run strangers' code without a sandbox")
    ] = False,
) -> None:
    """Grade a class: sandboxed, into nbgrader's gradebook, with feedback."""
    done = engine.grade_folder(
        unit,
        submitted,
        jobs=jobs,
        unsafe=unsafe,
        scheduler=scheduler,
        device=device,
    )
    typer.echo(done)


@app.command("report")
def make_report(unit: Unit) -> None:
    """Write the class report (HTML and CSV) from the gradebook."""
    typer.echo(report.write_report(unit))


@app.command("feedback")
def make_feedback(unit: Unit) -> None:
    """Make the feedback pages again, with points and comments given by hand."""
    from lmcourse.grading import handback  # nbgrader takes a second to import

    typer.echo(f"{handback.write_feedback(unit)} pages")


@app.command("export")
def export_grades(
    unit: Unit,
    to: Annotated[
        str, typer.Option(help=f"one of {', '.join(export.FORMS)}")
    ] = "canvas",
    out: Annotated[Path | None, typer.Option(help="the file to write")] = None,
) -> None:
    """Write the grades for the campus system."""
    typer.echo(export.write(unit, to, out))


@app.command("doctor")
def examine() -> None:
    """Check whether this machine is ready to build, release and grade."""
    findings = doctor.examine_teacher()
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.state == "ill" for finding in findings):
        raise typer.Exit(code=1)


if __name__ == "__main__":
    app()
