"""`flyweight report RUN` through typer."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from flyweight.cli.report import report
from flyweight.spec.errors import FlyweightError

app = typer.Typer()
app.command()(report)


def test_prints_the_path_alone(make_run) -> None:
    run = make_run(steps=20)
    result = CliRunner().invoke(app, [str(run)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{run / 'report.html'}\n"
    assert (run / "report.html").is_file()


def test_json_gives_the_figures(make_run) -> None:
    run = make_run(steps=20)
    result = CliRunner().invoke(app, [str(run), "--json"])
    figures = json.loads(result.stdout)
    assert figures["report"] == str(run / "report.html")
    assert figures["steps"] == 20
    assert figures["held_out_bits_per_byte"] == 1.75


def test_no_run_folder_is_the_users_mistake(tmp_path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert isinstance(result.exception, FlyweightError)
    assert result.stdout == ""
