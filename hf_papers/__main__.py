"""`python -m hf_papers` is `hf-papers`."""

from hf_papers.cli import main


if __name__ == "__main__":
    main()
