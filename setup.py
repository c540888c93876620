"""What pyproject.toml cannot say: `conf/` travels in the wheel as `experiments/conf`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Start from an empty build folder, so that modules which moved do not come along, and add the yamls."""

    def run(self):
        if self.editable_mode:
            return super().run()
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        shutil.copytree("conf", Path(self.build_lib) / "experiments" / "conf")


setup(cmdclass={"build_py": WithConf})
