"""The documentation holds: its examples run, its links and paths exist, its tables name what the code has."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
NOTEBOOKS = sorted(ROOT.glob("examples/notebooks/*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = "bench|csrc|docs|examples|ptx|python_tests|sobolev_kernels"
SOURCES = [*ROOT.glob("sobolev_kernels/**/*.py"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp")]
MODULES = ["sobolev_kernels"] + [
    module.name
    for module in pkgutil.walk_packages(sk.__path__, "sobolev_kernels.")
    if not any(part.startswith("_") for part in module.name.split("."))
]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path):
    """Each Python block with the empty lines before it that make an error name its line of the page."""
    whole = text(page)
    return ["\n" * whole.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(whole)]


def anchors(page: Path) -> set[str]:
    """The headings as GitHub links to them."""
    headings = HEADING.findall(FENCED.sub("", text(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_examples_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_cells_of_notebooks_run(notebook, tmp_path, monkeypatch):
    """In order, and the file has what each printed but no picture."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    whole = json.loads(text(notebook))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5) and notebook.stat().st_size < 20_000
    namespace = {"__name__": notebook.stem}
    for number, cell in enumerate(cell for cell in whole["cells"] if cell["cell_type"] == "code"):
        assert all(output["output_type"] == "stream" for output in cell["outputs"])
        exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), namespace)
    pyplot.close("all")


def test_there_are_notebooks():
    assert {"tutorial", "pinn"} <= {notebook.stem for notebook in NOTEBOOKS}


def test_the_printed_explanation_is_what_explain_prints():
    def without_machine(text: str) -> str:
        text = re.sub(r"isa \w+, tile \d+,( in_place True,)? threads \d+", "isa, tile, threads", text)
        return re.sub(r"(triton +refused: ).*", r"\1", text).strip()

    (printed,) = re.findall(r"^```text\n(student .*?)^```$", text(ROOT / "docs/guide.md"), re.MULTILINE | re.DOTALL)
    got = sk.explain(sk.MLP(2, 1), torch.zeros(256, 2), sk.Directions.sphere(4))
    assert without_machine(printed) == without_machine(got)


def test_pages_have_examples():
    assert [len(blocks(ROOT / page)) for page in ("README.md", "docs/guide.md", "docs/tutorial.md")] >= [1, 6, 4]


def test_readme_is_a_page_and_has_the_speed_that_was_measured():
    """Its rows are rows of the whole tables, with the least of what PyTorch and JAX took."""
    readme, speed = text(ROOT / "README.md"), text(ROOT / "docs/speed.md")
    assert len(readme.splitlines()) < 130
    rows = [row.strip("| ").split(" | ") for row in readme.splitlines() if re.match(r"\|.*×.* \| [\d.]+ \|", row)]
    assert len(rows) == 10
    for case, ours, ordinary, best, jax in rows:
        start = f"| {case} | {ours} |"
        (whole,) = [line.removeprefix(start) for line in speed.splitlines() if line.startswith(start)]
        first, *others, last = [float(ratio) for ratio in re.findall(r"([\d.]+)×", whole)]
        told = [float(cell.strip("*×")) for cell in (ordinary, best, jax)]
        assert told == [first, min(others), last], case
        assert all(cell.startswith("**") == (float(cell.strip("*×")) < 1) for cell in (best, jax))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    targets = [link for link in LINK.findall(FENCED.sub("", text(page))) if "://" not in link]
    broken = []
    for link in targets:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_text_exist(page):
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./]*)`", FENCED.sub("", text(page)))
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", [*sk.ACTIVATIONS, *sk.LOSSES, *sk.COUPLED, *DISTRIBUTIONS, "given"])
def test_the_support_matrix_names_every_row(name):
    assert f"`{name}`" in text(ROOT / "docs/support.md")


@pytest.mark.parametrize("name", sk.__all__)
def test_public_names_are_documented(name):
    value = getattr(sk, name)
    assert not callable(value) or value.__doc__
    assert any(re.search(rf"\b{name}\b", text(page)) for page in PAGES if page.name != "CHANGELOG.md")


def test_the_site_has_every_page_and_every_public_name():
    site = text(ROOT / "mkdocs.yml")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert not [page for page in pages if f" {page}\n" not in site]
    named = set(re.findall(r"^::: sobolev_kernels\.(\w+)$", text(ROOT / "docs/api.md"), re.MULTILINE))
    assert {name for name in sk.__all__ if callable(getattr(sk, name))} <= named


def test_sections_that_the_code_points_to_exist():
    numbers = set(re.findall(r"^## (\d+)\.", text(ROOT / "docs/math.md"), re.MULTILINE))
    pointed = {n for source in SOURCES for n in re.findall(r"docs/math\.md, section (\d+)", text(source))}
    assert pointed
    assert pointed <= numbers


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS, raise_on_error=False)
    assert result.failed == 0


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text(ROOT / "Makefile"), re.MULTILINE)
    listed = re.findall(r"^make ([\w-]+) +\w", shown, re.MULTILINE)
    assert listed and set(listed) == set(phony.split())
    assert set(re.findall(r"`make ([a-z-]+)", text(ROOT / "README.md"))) <= set(phony.split())


def test_what_others_write_is_what_is_written_here():
    """The block of docs/comparison.md against torch.func."""
    torch.manual_seed(0)
    (block,) = blocks(ROOT / "docs/comparison.md")
    got: dict = {}
    exec(block, got)
    student, x, v, a, S = got["student"], got["x"], got["v"][0], got["a"][0], got["root"] @ got["root"].T
    jacobian = torch.func.vmap(torch.func.jacrev(student))(x)
    hessian = torch.func.vmap(torch.func.hessian(student))(x)
    for name, expected in {
        "laplacian": torch.einsum("nodd->no", hessian),
        "rows": jacobian.transpose(0, 1),
        "second": (torch.einsum("node,nd,ne->no", hessian, v, v) + torch.einsum("nod,nd->no", jacobian, a))[None],
        "weighted": torch.einsum("node,de->no", hessian, S),
        "diagonal": torch.einsum("nodd->dno", hessian),
        "divergence": torch.einsum("ndd->n", jacobian),
        "hessian": hessian,
    }.items():
        torch.testing.assert_close(
            got[name], expected, **CLOSE_IN_SINGLE, msg=lambda said, name=name: f"{name}: {said}"
        )
