"""``python -m simenv.report DIR [DIR ...]``."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from simenv.report.page import main

        code = main()
    except KeyboardInterrupt:
        print("interrupted: the page is as it was", file=sys.stderr)
        code = 130
    sys.exit(code)
