"""The report of an evaluation: tables, pictures, plots, one page."""
