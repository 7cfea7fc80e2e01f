"""Print the lower bounds of pyproject.toml as pins: the oldest versions that jaxsolve allows."""

import tomllib
from pathlib import Path

EXTRAS = ("cli", "interop", "test")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = list(project["dependencies"])
for extra in EXTRAS:
    requirements += project["optional-dependencies"][extra]
for requirement in sorted(set(requirements)):
    print(requirement.replace(">=", "=="))
