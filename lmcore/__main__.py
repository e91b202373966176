"""The command ``lmcore``."""

from pathlib import Path

import typer

from . import doctor as examinations

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """Language models by hand: the library's commands."""


@app.command()
def doctor() -> None:
    """Check whether this machine is ready and how long the homework here will run."""
    findings = examinations.examine_student(Path.cwd())
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.state == "ill" for finding in findings):
        raise typer.Exit(code=1)


if __name__ == "__main__":
    app()
