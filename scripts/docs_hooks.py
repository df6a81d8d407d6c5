"""Hooks of mkdocs.yml: what the site needs beyond Markdown, done at build time and without JavaScript.

Formulas between dollars become MathML, doctests of docstrings code blocks, notebooks pages; the Markdown of
reports/ joins the site. Links are those of the repository, so that docs/ reads the same on GitHub.
"""

import base64
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import nbformat
from latex2mathml.converter import convert
from markdown import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
REPORTS = (".md", ".svg", ".png")


class Formula(InlineProcessor):
    """$...$ and $$...$$ as MathML; code spans come before it and stay as they are."""

    def handleMatch(self, m, data):
        mathml = convert(m[1] or m[2], display="block" if m[1] else "inline")
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


class Docstring(Preprocessor):
    """A doctest outside a code block becomes one; the named lines of a layer's docstring stay lines."""

    def run(self, lines):
        out, doctest, fenced = [], False, False
        for line in lines:
            fenced ^= line.lstrip().startswith("```")
            if not fenced and not doctest and line.startswith(">>> "):
                out, doctest = [*out, "", "```pycon"], True
            elif doctest and not line.strip():
                out, doctest = [*out, "```"], False
            elif re.match(r"(Vendor|Paper|Omits|Axes): ", line):
                out.append("")
            out.append(line)
        return [*out, "```"] if doctest else out


class Ours(Extension):
    """Both of them; before escapes and after code spans, before fenced blocks are taken out."""

    def extendMarkdown(self, md):
        pattern = r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)"
        md.inlinePatterns.register(Formula(pattern, md), "formula", 185)
        md.preprocessors.register(Docstring(md), "docstring", 27)


def on_config(config):
    config.markdown_extensions.append(Ours())


def on_files(files, config):
    """Notebooks become pages, reports join; both are read where they lie."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for name, content in notebook_files(Path(file.abs_src_path)):
            files.append(File.generated(config, join(dirname(file.src_uri), name), content=content))
    found = sorted(p for p in (ROOT / "reports").rglob("*") if p.suffix in REPORTS and "sweep" not in p.parts)
    for path in found:
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    pages = [p.relative_to(ROOT).as_posix() for p in found if p.suffix == ".md"]
    if pages:
        config.nav.append({"Reports": pages})


def notebook_files(path):
    """A notebook as Markdown, with its stored outputs: text, formulas and figures."""
    cells, figures = [], {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            cells.append(cell.source)
            continue
        cells.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}_{len(figures) + 1}.png"
                figures[name] = base64.b64decode(data["image/png"])
                cells.append(f"![{name}]({name})")
            elif "text/latex" in data:
                cells.append("$$" + data["text/latex"].strip("$") + "$$")
            else:
                cells.append(f"```text\n{data['text/plain'].rstrip()}\n```")
    return [(f"{path.stem}.md", "\n\n".join(cells) + "\n"), *figures.items()]


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository as links of the site; what the site lacks keeps its text."""
    here = page.file.src_uri
    place = here if here.startswith("reports/") else join("docs", here)

    def link(m):
        path, mark, anchor = m[2].partition("#")
        if re.match(r"\w+:", path) or not path:
            return m[0]
        source = normpath(join(dirname(place), path))
        target = re.sub(r"\.ipynb$", ".md", source.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return m[1] if (ROOT / source).exists() else m[0]  # one that leads nowhere stays, for --strict to find
        return f"{m[0][: m[0].index('](')]}]({relpath(target, dirname(here) or '.')}{mark}{anchor})"

    words = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)  # code at odd places
    words[::2] = [re.sub(r"!?\[([^]]*)\]\(([^) ]+)\)", link, text) for text in words[::2]]
    return "".join(words)
