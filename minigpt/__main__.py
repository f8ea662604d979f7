"""``python -m minigpt``."""

import sys

if __name__ == "__main__":
    try:
        from minigpt.cli import main  # here, so that Ctrl-C during the imports ends as quietly as later

        sys.exit(main())
    except KeyboardInterrupt:
        print("\nminigpt: interrupted", file=sys.stderr)
        sys.exit(130)
