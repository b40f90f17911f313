"""`python -m distill.results <sweep or run folders>`: finished runs as a Markdown table, one row a method.

Runs are one row where nothing but their seed differs, and share a table where nothing but seed and method do:
another benchmark, data set, model, batch size or length makes another table, whose heading says what differs.
"""

from distill.config.console import one_sentence_errors
from distill.runs.table import arguments_of, report


def main() -> None:
    arguments = arguments_of("results", "Finished runs as a table.").parse_args()
    with one_sentence_errors():
        print(report(arguments.folders, arguments.across))


if __name__ == "__main__":
    main()
