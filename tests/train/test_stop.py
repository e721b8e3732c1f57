"""Signals that ask training to stop."""

import os
import signal

import pytest

from medqa.train.stop import StopRequest


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_signal_is_held_back_and_the_second_stops():
    stop = StopRequest(1)
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        ask()
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_stops_what_is_being_saved():
    stop = StopRequest(1)
    with stop.listening():
        with stop.saving():
            ask()
            ask()
        with pytest.raises(KeyboardInterrupt):
            ask()


def test_what_a_launcher_hands_on_again_is_no_second_wish():
    stop = StopRequest(2)
    with stop.listening():
        ask()
        ask()
    assert stop.asked
