"""Names given as text."""

import sys

import pytest

from secateur.errors import ArgumentError
from secateur.run.names import import_name, nearest, resolve


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


def test_a_module_in_the_working_directory_is_found(here):
    (here / "user_code.py").write_text("class Box:\n    value = 3\n")
    assert import_name("user_code:Box.value") == 3


def test_a_wrong_attribute_names_the_nearest(here):
    (here / "user_nets.py").write_text("def small_cnn():\n    pass\n\ndef other():\n    pass\n")
    with pytest.raises(ArgumentError, match="user_nets has no 'smal_cnn': did you mean 'small_cnn'"):
        import_name("user_nets:smal_cnn")
    with pytest.raises(ArgumentError, match="there is: other, small_cnn"):
        import_name("user_nets:zzz")


def test_a_missing_module_says_where_it_was_looked_for(here):
    with pytest.raises(ArgumentError, match=f"no module 'user_nosuch' in {here}"):
        import_name("user_nosuch:f")


def test_an_import_inside_the_module_that_fails_is_told_as_such(here):
    (here / "user_bad.py").write_text("import user_absent\n")
    (here / "user_worse.py").write_text("1 / 0\n")
    with pytest.raises(ArgumentError, match="importing user_bad failed: No module named 'user_absent'"):
        import_name("user_bad:f")
    with pytest.raises(ArgumentError, match="importing user_worse failed: ZeroDivisionError"):
        import_name("user_worse:f")


@pytest.mark.parametrize("spec", ["", ":", "a:", ":b", "a b:c", "no_such_nets.py:f", "x/y:f", "a:b-c"])
def test_what_is_not_module_name(spec):
    if spec == "no_such_nets.py:f":  # reads as package nets, module py
        with pytest.raises(ArgumentError, match="no module 'no_such_nets'"):
            import_name(spec)
        return
    with pytest.raises(ArgumentError, match="is not module:name"):
        import_name(spec)


def test_resolve_prefers_public_names_and_drops_the_trailing_underscore():
    assert resolve("global", {"global_": "g"}) == "g"
    assert resolve("global_", {"global_": "g"}) == "g"
    with pytest.raises(ArgumentError, match="no allocation is called 'globl': did you mean 'global'"):
        resolve("globl", {"global_": 1, "uniform": 2}, "allocation")


def test_nearest_lists_all_when_none_is_close():
    assert nearest("qqq", ["b", "a", "_hidden"]) == "there is: a, b"
    assert nearest("a", []) == "there is none"


def test_code_in_a_folder_that_names_it_is_not_run(here):
    (here / "user_evil.py").write_text("raise SystemExit('run')\n")
    (here / "user_pack").mkdir()
    (here / "user_pack" / "__init__.py").write_text("raise SystemExit('run')\n")
    for spec in ("user_evil:f", "user_pack.sub:f"):
        with pytest.raises(ArgumentError, match="is not run"):
            import_name(spec, not_in=here)
    assert import_name("math:pi", not_in=here) > 3
