"""The embedded pair: a synthetic arithmetic task with a tiny teacher and a weaker tiny student, for runs without downloads.

`task` holds problems, written solutions and the verifier (pure Python); `build` trains both checkpoints from nothing;
`teacher/`, `student/` and `build.json` are what `python -m distill.tiny.build` wrote.
"""
