"""Prints a pip constraint for the lowest version of every dependency that pyproject.toml admits."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"].values()
for requirement in [*project["dependencies"], *(line for extra in extras for line in extra)]:
    if match := re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:,.*)?", requirement):
        print(f"{match[1]}=={match[2]}")
    elif not requirement.startswith(f"{project['name']}["):
        raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound")
