"""`python -m distill.results <sweep or run folders>`: finished runs as Markdown tables, one row per method.

Runs that differ only in their seed form one row. Rows that differ only in the method form one table. Another
benchmark, data set, model, batch size or length makes another table, whose heading names the difference.
"""

from distill.config.console import one_sentence_errors
from distill.runs.table import arguments_of, report


def main() -> None:
    arguments = arguments_of("results", "Finished runs as a table.").parse_args()
    with one_sentence_errors():
        print(report(arguments.folders, arguments.across))


if __name__ == "__main__":
    main()
