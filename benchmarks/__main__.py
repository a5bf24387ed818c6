"""`python -m gptfast.benchmarks`: `gptfast bench` without the command line's other needs."""

import sys

from gptfast.errors import GptfastError

from .command import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except GptfastError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; cases that were finished are in the file of --json, where one was named")
