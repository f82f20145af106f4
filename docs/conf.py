"""Sphinx' settings; ``make docs`` builds the site. The pages themselves are made by docs/_ext/pages.py."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import keras_distill  # noqa: E402

project = "keras_distill"
author = "the keras_distill authors"
copyright = f"2026, {author}"
version = release = keras_distill.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "pages",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# A page outside all lists is no error, nor is a short type name shared by two modules.
suppress_warnings = ["toc.not_included", "ref.python"]
exclude_patterns = ["_build", "_ext", "outputs"]
templates_path = ["_templates"]
default_role = "literal"
smartquotes = False  # keep dots and hyphens of shapes and options

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "tasklist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "keras_distill"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["papers.js"]
# Pages that are a section by themselves need no sidebar list.
html_sidebars = {name: [] for name in ("choose", "papers", "design")}
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
# Published versions, newest first: (label, address). The site of this checkout is always the first entry.
html_context = {"default_mode": "auto", "other_versions": []}
html_theme_options = {
    "navbar_end": ["version", "theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "collapse_navigation": True,
    "show_nav_level": 1,
    "navigation_depth": 3,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
