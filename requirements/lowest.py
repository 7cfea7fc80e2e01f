"""Print the lower bounds of pyproject.toml as pins: the oldest versions that jaxsolve allows."""

import tomllib
from pathlib import Path

EXTRAS = ("cli", "interop", "test")
TOOLS = ["pytest-xdist>=3.6.1"]

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = TOOLS + project["dependencies"]
for extra in EXTRAS:
    requirements += project["optional-dependencies"][extra]
for requirement in sorted(set(requirements)):
    print(requirement.replace(">=", "=="))
