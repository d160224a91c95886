"""The pages, and what makes the parts of them that are drawn from the code: `python -m docs`, or `make docs`."""
