"""A sweep as a report: methods compared with a baseline, in tables, figures and examples."""
