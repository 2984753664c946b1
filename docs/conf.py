"""Sphinx settings of the site that build.py assembles; run build.py, not Sphinx itself."""

import configparser
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import reference
from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.transforms import SphinxTransform

settings = configparser.ConfigParser()
settings.read(Path(__file__).parent.parent / "settings.ini")
settings = settings["DEFAULT"]

project = settings["lib_name"]
author = settings["author"]
copyright = settings["copyright"]
release = version = settings["version"]

extensions = ["myst_nb", "sphinx_design", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"
nb_number_source_lines = False
nb_code_prompt_show = "imports"
nb_code_prompt_hide = "imports"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "fieldlist", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["mystnb.unknown_mime_type"]

add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
python_display_short_literal_types = True
toc_object_entries = False
modindex_common_prefix = ["spectral_core."]
highlight_language = "python"

html_theme = "sphinx_book_theme"
html_title = "spectral-core"
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_static_path = []  # set by build.py
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "use_download_button": False,
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "navigation_with_keys": False,
    "collapse_navigation": True,
}


class LinkNames(SphinxTransform):
    "A public name in backticks becomes a link to its entry in the reference."

    default_priority = 400
    names = reference.index()

    def apply(self, **_: object) -> None:
        if self.env.docname == "commands": return  # there `fit` is the command
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext().removeprefix("sc.").partition("(")[0]
            within = (nodes.reference, nodes.title, desc_signature, pending_xref)
            parent, inside = literal.parent, False
            while parent is not None: parent, inside = parent.parent, inside or isinstance(parent, within)
            if text not in self.names or inside: continue
            link = pending_xref("", refdomain="py", reftype="obj", reftarget=self.names[text], refexplicit=True, refwarn=True)
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def setup(app) -> None:
    app.add_transform(LinkNames)
