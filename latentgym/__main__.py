"""``python -m latentgym``, for where scripts are not on the path."""

from latentgym.cli import main

if __name__ == "__main__":
    main()
