"""What pyproject.toml cannot say: a wheel carries launch/, tools/ and ds_configs/ in the package.

In a checkout they lie at the top, where people look for them; sparsecl/checkout.py finds both.
"""

from setuptools import find_packages, setup

FOLDERS = ("launch", "launch/configs", "launch/experiments", "ds_configs", "tools")
SHIPPED = {f"sparsecl.shipped.{folder.replace('/', '.')}": folder for folder in FOLDERS}

setup(
    packages=[*find_packages(include=["sparsecl*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={name: ["*.yaml", "*.json", "*.py", "*.md"] for name in SHIPPED},
)
