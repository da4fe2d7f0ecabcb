"""What mkdocs does beside its own: it takes the pages of the root into the site."""

import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {
    "README.md": "index.md",
    **{name: name for name in ("README.zh-CN.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")},
}
"""The files of the root that become pages, and their names in the site. They link to each other as files do."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages of the root into the site."""
    for name, to in PAGES.items():
        files.append(File.generated(config, to, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links lead to where pages and pictures are in the site."""
    in_root = page.file.src_uri in PAGES.values()

    def moved(found: re.Match[str]) -> str:
        path, anchor = found["path"], found["anchor"] or ""
        from_root = path if in_root else path.removeprefix("../")
        if not in_root and from_root == path:
            return found[0]
        return f"]({PAGES.get(from_root, from_root.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)", moved, markdown)
