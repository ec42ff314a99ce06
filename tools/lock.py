"""Print the installed packages as pip constraints: `make lock`.

Versions of a local build, such as torch 2.13.0+cpu, are written without their suffix, which no index lists.
"""

from importlib.metadata import distributions


def constraints() -> list[str]:
    """Return `name==version` of every installed package but ours and the installers, sorted."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version.split("+")[0] for d in distributions()}
    ours = {"ernie-export", "pip", "setuptools", "wheel"}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in ours]


if __name__ == "__main__":
    print("# Versions that the checks ran with, on Python 3.11 and Linux: make lock.")
    print("\n".join(constraints()))
