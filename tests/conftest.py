"""What the tests share: the browser, and a loud line where there is none."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

# A busy machine is no failure: no deadlines; the same examples every time, and no slow explaining of a failure.
settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    phases=[p for p in Phase if p is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: Ctrl-C is tested all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def busy_machine() -> Iterator[None]:
    """Timings of tiny models beside other work spread by any amount: what refuses these has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.targets.latency.SPREAD", float("inf"))
        yield


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> str:
    """Path of the browser; tests that ask for it are not collected where there is none."""
    assert BROWSER is not None
    return BROWSER


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a browser, leave its tests out: the same page is still parsed and checked by the others."""
    if BROWSER is not None:
        return
    needs = [i for i in items if "browser" in getattr(i, "fixturenames", ())]
    if needs:
        config.hook.pytest_deselected(items=needs)
        config.stash[_NOT_RUN] = len(needs)
        items[:] = [i for i in items if i not in needs]


_NOT_RUN = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what did not run."""
    count = config.stash.get(_NOT_RUN, 0)
    if count:
        terminalreporter.section("BROWSER TESTS NOT RUN", "!", red=True, bold=True)
        terminalreporter.line(f"BROWSER TESTS NOT RUN: install Debian's chromium ({count} tests left out)", red=True)
