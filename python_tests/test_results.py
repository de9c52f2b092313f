"""The page of results: that it is fresh, and what a section may ask for."""

import pytest

from examples import results
from examples.lab import write_csv


def test_page_of_results_is_what_the_tables_say():
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


SECTION = """## A title, of course

claim: it helps | it does | yes

{table N=10 metrics=error}

{table one_times.csv}

{picture}What it shows
"""
# Two methods, of which the second has no second training, at two sizes.
LONG = [
    {"N": N, "method": method, "budget": budget, "seeds": 3, "steps": 1500.0, "ms": 0.5, "error_median": error * N}
    | {"other_median": None}
    for N in (10, 20)
    for method, budget, error in (("ordinary", "steps", 0.2), ("sobolev", "steps", 0.1), ("ordinary", "time", 0.15))
]


def test_page_of_results(tmp_path, monkeypatch):
    """Claims on top, tables of what was asked for, the best bold; and what is wrong with a section in words."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "introduction.md.in").write_text("# Results\n")
    (tmp_path / "one.md.in").write_text(SECTION)
    write_csv(LONG, tmp_path / "one.csv")
    write_csv([{"step": "1,000 of them", "fused ms": 0.12345, "count": 1200}], tmp_path / "one_times.csv")
    with pytest.raises(results.Stale, match=r"one.md.in: one.png is not in"):
        results.page()
    (tmp_path / "one.png").touch()
    lines = results.page().splitlines()
    assert "| [A title, of course](#a-title-of-course) | it helps | it does | yes |" in lines
    assert "| N | method | error | error, equal time | ms | steps |" in lines
    assert "| 10 | ordinary | 2 | **1.5** | 0.50 | 1,500 |" in lines
    assert "|  | Sobolev | **1** | - | 0.50 | - |" in lines and not any(line.startswith("| 20 ") for line in lines)
    assert "| 1,000 of them | 0.12 | 1,200 |" in lines
    assert f"![What it shows]({tmp_path.name}/one.png)" in lines
    for wrong, said in (
        ("{table n=10}", "no column n, but N, method"),
        ("{table N=7}", "no rows of N=7"),
        ("{table x.csv}", "x.csv is not in"),
    ):
        (tmp_path / "one.md.in").write_text(f"## A title\n{wrong}\n")
        with pytest.raises(results.Stale, match=said):
            results.page()
