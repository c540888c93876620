"""``python -m simenv.report DIR [DIR ...]``."""

import sys

from simenv.report.page import main

if __name__ == "__main__":
    sys.exit(main())
