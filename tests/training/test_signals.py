"""What a signal does to a run, but for the run: see `test_interrupted.py` for that."""

import signal
import threading

import pytest

from cifar_jax.errors import Stopped
from cifar_jax.training.signals import Signals, remembered


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_until_asked_for(
    signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signum)
    with remembered() as signals:
        signals.check()
        signal.raise_signal(signum)
        assert signals.received == signum
        with pytest.raises(Stopped, match=f"^stopped by {signum.name}\\. ") as stopped:
            signals.check()
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is before
    assert "once more to stop at once" in capfd.readouterr().err


def test_the_second_one_acts_as_before() -> None:
    with remembered():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def _send_and_go_on() -> None:
    signal.raise_signal(signal.SIGTERM)
    pytest.fail("went on")


def test_where_there_is_nothing_to_save_it_ends_the_run_as_it_comes() -> None:
    with remembered() as signals, pytest.raises(Stopped), signals.at_once():
        _send_and_go_on()


def test_and_is_remembered_again_after_that() -> None:
    with remembered() as signals:
        with signals.at_once():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_one_that_came_before_is_acted_on_before_and_after() -> None:
    signals = Signals()
    with pytest.raises(Stopped), signals.at_once():
        signals.received = signal.SIGTERM
    with pytest.raises(Stopped), signals.at_once():
        pytest.fail("should not be entered")


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_remembers_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def elsewhere() -> None:
        with remembered():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
