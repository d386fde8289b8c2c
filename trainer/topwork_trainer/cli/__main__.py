"""Entry point of ``python -m topwork_trainer.cli``, the same as ``topwork-train``."""

from topwork_trainer.cli import main

if __name__ == "__main__":
    main()
