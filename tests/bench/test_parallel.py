"""The benches about many ranks: their rows, and what they refuse."""

import json

import pytest
from typer.testing import CliRunner

from skyreels_rt.bench.parallel import measure_parallel
from skyreels_rt.cli import app
from skyreels_rt.errors import InvalidArgument


def test_too_few_repeats_are_refused():
    with pytest.raises(InvalidArgument, match="repeats"):
        measure_parallel("tiny-random", repeats=4, full=False, command="")


@pytest.mark.slow
def test_rows_of_two_ranks():
    seen = []
    report = measure_parallel(
        "tiny-random", repeats=5, full=True, command="x", on_run=seen.append
    ).to_json()
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["parallel.window.difference"]["value"] == 0
    assert rows["parallel.ulysses.difference"]["value"] <= 1
    assert rows["parallel.window.speedup"]["target"] == 1.5
    assert len(seen) == 5 * 5
    sent = report["details"]["sent_bytes"]
    assert sent["one"] == {}
    assert 0 < sent["window"]["window"] < sent["ulysses"]["ulysses"]


@pytest.mark.slow
def test_links_between_two_ranks(tmp_path):
    target = tmp_path / "links.json"
    command = ["bench", "parallel", "--links", "--model", "tiny-random", "--json", str(target)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert all(row["value"] > 0 for row in report["rows"])
    assert len(report["rows"]) == 3
    assert report["details"]["suggested"]


def test_scaling_is_printed_and_stored(tmp_path):
    target = tmp_path / "scaling.json"
    result = CliRunner().invoke(app, ["bench", "scaling", "--json", str(target)])
    assert result.exit_code == 0, result.output
    assert "predicted, not measured" in result.output
    report = json.loads(target.read_text())
    assert report["schema"] == 1
    assert all("predicted" in row["unit"] for row in report["rows"])
