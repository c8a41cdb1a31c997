"""What ``pyproject.toml`` cannot say: the README as a package index shows it, where no file stands beside it."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# Code comes first, as an index and a call in it look like a link: `augment[branch](images)`.
RELATIVE = re.compile(r"(?s:```.*?```)|`[^`]*`|(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


def described(readme: str, repository: str | None) -> str:
    """The README with its links to files made absolute, or turned into plain text where no repository's address is known."""

    def absolute(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        if target is None:
            return found[0]
        if repository is None:
            return "" if image else text
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/HEAD/{target})"

    return RELATIVE.sub(absolute, readme)


if __name__ == "__main__":
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    setup(
        long_description=described((ROOT / "README.md").read_text(encoding="utf-8"), urls.get("Repository")),
        long_description_content_type="text/markdown",
    )
