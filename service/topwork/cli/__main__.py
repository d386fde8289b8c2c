"""``python -m topwork.cli`` is ``topwork``."""

from topwork.cli import main

if __name__ == "__main__":
    main()
