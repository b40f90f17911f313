#!/usr/bin/env bash
# One would guess: 3\binom{5}{2} is the product 3 * 10 = 30, as 3\sqrt{5} and 3x are products.
# What happens: math-verify adds the number to the binomial coefficient behind it, as in a mixed number, and reads 13.
# With \cdot between them it is the product.
# Why it matters: answers of counting problems are often left in this form. A grader or a reward built on math-verify
# calls 3\binom{5}{2} equal to 13 and unequal to 30.
# Source: latex2sympy2_extended/latex2sympy2.py, which treats a whole number before a fraction-like group as mixed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.9.3 sympy==1.14.0
"$work/venv/bin/python" - <<'EOF'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"), "latex2sympy2-extended", version("latex2sympy2-extended"))


def value(text):
    found = parse(rf"$\boxed{{{text}}}$")[0]
    print(text, "is read as", found, "=", found.doit())
    return found.doit()


assert value(r"3\binom{5}{2}") == 13
assert value(r"3\cdot\binom{5}{2}") == 30
assert value(r"3\sqrt{4}") == 6
thirteen, thirty = (verify(parse(f"${n}$"), parse(r"$\boxed{3\binom{5}{2}}$")) for n in (13, 30))
print("equal to 13:", thirteen, "| equal to 30:", thirty)
assert thirteen and not thirty
EOF
