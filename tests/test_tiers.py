"""Plain pytest leaves out what is slow and says so; --all runs it; a reader's own file is checked by everything."""

import conftest
import pytest

TESTS = """
import pytest

def test_fast():
    pass

@pytest.mark.slow
@pytest.mark.parametrize("n", range(2))
def test_slow(n):
    pass
"""
HINT = "\n2 slow tests were left out; pytest --all runs them, too\n"


@pytest.mark.parametrize("flags, mine, found", [
    ([], None, "1 passed, 2 deselected"), (["--all"], None, "3 passed"), ([], "my_metadistil.py", "3 passed"),
    (["-k", "fast"], None, "1 passed, 2 deselected"),
])  # fmt: skip
def test_what_is_slow_is_left_out_and_all_runs_it(flags, mine, found, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINE", mine) if mine else monkeypatch.delenv("MINE", raising=False)
    (tmp_path / "test_some.py").write_text(TESTS)
    apart = "-s -p no:cacheprovider --import-mode=importlib --disable-plugin-autoload".split()
    pytest.main([*apart, *flags, str(tmp_path)], plugins=[conftest])
    said = capsys.readouterr().out
    assert f" {found} in " in said and (HINT in said) == (flags == [] and mine is None)
