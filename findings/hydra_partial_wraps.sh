#!/usr/bin/env bash
# One would guess: `_partial_: true` gives a functools.partial, as Hydra's documentation says and as 1.3.2 does. So
# functools.partial(that, b=2) is one flat partial, whose func is the target of the configuration.
# What happens: hydra-core 1.3.8 gives a subclass with a __call__ of its own. isinstance(x, functools.partial) holds
# and x.func is the target, but Python flattens only exact partials: one more functools.partial around it has the
# wrapper as its func, and only the outer arguments in keywords.
# Why it matters: code that reads .func or .keywords of a partial, to name a loss or to find its options, is right
# with 1.3.2 and wrong with a later patch release, without an error.
# Source: hydra/_internal/target_policy.py, _DeferredTarget; hydra/_internal/instantiate/_instantiate2.py, _call_target.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/show.py" <<'EOF'
import functools
from importlib.metadata import version

from hydra.utils import instantiate

inner = instantiate({"_target_": "collections.OrderedDict", "_partial_": True, "a": 1})
outer = functools.partial(inner, b=2)
print("hydra-core", version("hydra-core"), "|", type(inner).__name__, "|", outer.func, outer.keywords)
assert isinstance(inner, functools.partial)
assert inner.func.__name__ == "OrderedDict"
assert list(outer()) == ["a", "b"]  # a call is right in both
if version("hydra-core") == "1.3.2":
    assert type(inner) is functools.partial
    assert outer.keywords == {"a": 1, "b": 2}
else:
    assert type(inner) is not functools.partial
    assert outer.func is inner
    assert outer.keywords == {"b": 2}
EOF
for version in 1.3.2 1.3.8; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "hydra-core==$version"
  "$work/$version/bin/python" "$work/show.py"
done
