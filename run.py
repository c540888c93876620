"""``python run.py +experiment=NAME key=value ...`` is ``simenv run +experiment=NAME key=value ...``."""

import sys

from experiments.__main__ import main

if __name__ == "__main__":
    sys.exit(main(called="python run.py"))
