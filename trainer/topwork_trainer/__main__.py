"""``python -m topwork_trainer`` is ``topwork-train``."""

from topwork_trainer.cli import main

if __name__ == "__main__":
    main()
