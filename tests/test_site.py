"""The documentation builds without a network, and the built pages fetch nothing from another host."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modelmeter
from modelmeter.report.formulas import QUANTITIES, formulas

# mkdocs, in a process where any use of the network is an error.
BUILD = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
sys.argv = ["mkdocs", "build", "--strict"]
runpy.run_module("mkdocs", run_name="__main__")
"""
REPORTS = {
    "reports/reconciliation.md": "# Reconciled\n\n[logits](../docs/counting.md#logits), [keys](../configs/page.yaml), `a[0](b)`\n\n"
    "[Chinese](model/performance.zh.md#two)\n\n![figure](model/figures/one.svg)\n",
    "reports/model/performance.zh.md": "# \u6027\u80fd\n\n$\\frac{a}{b}$ and `$c$`\n\n## Two\n\n![figure](figures/one.svg)\n",
    "reports/model/figures/one.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>\n',
    "reports/sweep/skipped.md": "# Skipped\n",
    "configs/page.yaml": "batch: 1\n",
}
PUBLIC = [name for name in modelmeter.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of these pages and of the reports above."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("docs", "scripts"):
        shutil.copytree(name, root / name)
    shutil.copy("mkdocs.yml", root)
    (root / "src").symlink_to(Path("src").resolve())
    for name, text in REPORTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    environment = {"PATH": "", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return root / "site"


def test_pages_load_nothing_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed|video|audio)\b[^>]*>", text)
        assert not [t for t in tags if re.search(r"""(?:src|srcset|href|data)=["']?(?:https?:)?//""", t)], page
        # The theme's script asks other hosts for these two elements alone.
        assert 'class="mermaid"' not in text and 'data-md-component="source"' not in text, page


def test_styles_load_nothing_from_another_host(site):
    for sheet in [*site.rglob("*.css"), *site.rglob("*.html")]:
        assert not re.search(r"""@import\s|url\(\s*["']?(?:https?:)?//""", sheet.read_text()), sheet


def test_formulas_are_mathml(site):
    text = (site / "formulas.html").read_text()
    rows = sum(getattr(cost, key) != 0 for cost in formulas().values() for key in QUANTITIES.values())
    assert text.count("<td><math") == rows
    assert "\\left" not in text and "\\frac" not in text


def test_notebooks_are_pages_with_their_outputs(site):
    for notebook in Path("docs/notebooks").glob("*.ipynb"):
        text = (site / "notebooks" / f"{notebook.stem}.html").read_text()
        figures = re.findall(r'<img [^>]*src="([^"]+)"', text)
        assert figures and all((site / "notebooks" / figure).stat().st_size > 1000 for figure in figures)
    assert "notebooks/explore_a_page.html" in (site / "index.html").read_text()


def test_reports_join_the_site_with_figures_links_and_formulas(site):
    text = (site / "reports/reconciliation.html").read_text()
    assert 'href="../counting.html#logits"' in text and 'href="model/performance.zh.html#two"' in text
    assert 'src="model/figures/one.svg"' in text and (site / "reports/model/figures/one.svg").is_file()
    assert "keys, <code>a[0](b)</code>" in text  # the site has no configs: the link keeps its text
    chinese = (site / "reports/model/performance.zh.html").read_text()
    assert "<mfrac>" in chinese and "<code>$c$</code>" in chinese
    assert not (site / "reports/sweep").exists()


def test_the_reference_has_every_public_name(site):
    package = Path("docs/reference/package.md").read_text()
    for name in PUBLIC:
        assert f"`{name}`" in package, name
        anchor = f"{getattr(modelmeter, name).__module__}.{name}"
        assert any(f'id="{anchor}"' in page.read_text() for page in (site / "reference").glob("*.html")), anchor


def test_doctests_of_docstrings_are_code_not_quotations(site):
    for page in (site / "reference").glob("*.html"):
        assert "<blockquote>" not in page.read_text(), page


def test_the_tests_that_the_validation_page_names_exist():
    named = re.findall(r"`(test_\w+\.py)`", Path("docs/validation.md").read_text())
    assert named and all((Path("tests") / name).is_file() for name in named)
