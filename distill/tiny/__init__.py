"""The embedded pair: a synthetic arithmetic task, a tiny teacher and a weaker tiny student.

`task` holds problems, written solutions and the verifier (pure Python); `build` trains both checkpoints from
nothing; `teacher/`, `student/` and `build.json` are what `python -m distill.tiny.build` wrote.
"""
