"""Settings of the documentation site, which `make docs` builds with Sphinx."""

import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "cifar_jax"
copyright = "The cifar_jax maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "cifar_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # Browsers block it for pages that are opened from a file.
highlight_language = "none"  # Of code blocks without a language.
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # Generated text may skip heading levels.

default_role = "code"  # Docstrings mark code with single backticks.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
napoleon_numpy_docstring = False


def write_results(app: Sphinx) -> None:
    """Write the page `results.md`, which contains the README's result tables."""
    text = (ROOT / "README.md").read_text()
    sections = re.findall(r"^## (?:Results|Better recipes)\n.*?(?=^## )", text, re.M | re.S)
    body = "".join(sections).removeprefix("## Results\n")
    for folder, replacement in (
        ("docs/", ""),
        ("results", "../results"),
        ("experiments/", "../experiments/"),
    ):
        body = body.replace(f"]({folder}", f"]({replacement}")
    page = f"# Results\n\n![Accuracy by minutes of training](../results/minutes.svg)\n\n{body}"
    target = DOCS / "results.md"
    if not target.exists() or target.read_text() != page:
        target.write_text(page)


def adapt_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change the links in a page that lead outside of docs/.

    The site can link to files there, but not to folders or Markdown pages. A link to README.md
    becomes a link to `results.md`. Other links to folders and pages become plain text.
    """

    def adapted(link: re.Match[str]) -> str:
        text, target = link.groups()
        if target.startswith("../README.md"):
            return f"[{text}](results.md)"
        file = DOCS / target.partition("#")[0]
        return text if file.is_dir() or file.suffix == ".md" else link[0]

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)]*)\)", adapted, source[0])


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Mark the docstring of an attribute as one without a type.

    Otherwise, napoleon takes the text before the first colon as the type of the attribute.
    """
    if what == "attribute" and lines:
        lines[0] = f": {lines[0]}"


def setup(app: Sphinx) -> None:
    """Call the functions above during the build."""
    # The priority of napoleon is 500, so `keep_colons` is called first.
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("builder-inited", write_results)
    app.connect("source-read", adapt_links)
