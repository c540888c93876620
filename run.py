"""``python run.py +experiment=NAME key=value ...`` is ``simenv run +experiment=NAME key=value ...``."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from the first moment on: importing takes seconds
    try:
        from experiments.__main__ import main

        code = main(called="python run.py")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        code = 130
    sys.exit(code)
