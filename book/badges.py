"""Write the repository's public address, [project.urls] Repository in pyproject.toml, to where readers need it.

    python book/badges.py

Each notebook gets "Open in Colab" and "Open in Kaggle" under its title, and the address in its set-up cell, from which
Colab clones; README gets badges under its title. Without an address all of it is taken out. Only sources are changed:
the notebooks stay as they were executed.
"""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BADGES = re.compile(r"(?m)^\[!\[.*\n\n")  # a line of them, and the empty line after it


def main(root: Path = ROOT) -> None:
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    address = urls.get("Repository", "").rstrip("/")
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        first = notebook["cells"][0]
        first["source"] = put_badges("".join(first["source"]), open_in(address, path.name)).splitlines(True)
        for cell in notebook["cells"]:
            if "bootstrap" in cell["metadata"].get("tags", []):
                text = re.sub(r'(?m)^GIT = ".*?"', f"GIT = {json.dumps(address)}", "".join(cell["source"]))
                cell["source"] = text.splitlines(True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = root / "README.md"
    badges = open_in(address, "04_baseline_cnn.ipynb")
    if address:
        badges += f" [![MIT licence](https://img.shields.io/badge/licence-MIT-blue)]({address}/blob/main/LICENSE)"
        badges += f" [![Python 3.11 to 3.13](https://img.shields.io/badge/python-3.11--3.13-blue)]({address})"
    readme.write_text(put_badges(readme.read_text(encoding="utf-8"), badges), encoding="utf-8")


def open_in(address: str, notebook: str) -> str:
    """Return the two badges that open a notebook of the repository, "" without an address."""
    if not address:
        return ""
    file = f"blob/main/notebooks/{notebook}"
    colab = f"https://colab.research.google.com/github/{address.removeprefix('https://github.com/')}/{file}"
    kaggle = f"https://kaggle.com/kernels/welcome?src={address}/{file}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )


def put_badges(text: str, badges: str) -> str:
    """Return a Markdown text with this line of badges under its title, in place of an earlier one."""
    title, _, rest = BADGES.sub("", text, count=1).partition("\n\n")
    return f"{title}\n\n{badges}\n\n{rest}" if badges else f"{title}\n\n{rest}"


if __name__ == "__main__":
    main()
