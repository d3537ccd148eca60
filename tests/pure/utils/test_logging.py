"""The logging set-up: this package's records on stderr, and nobody else's."""

import logging

import pytest

from mimo_engine.utils.logging import describe_failure, setup_logging


@pytest.fixture
def package_logger():
    logger = logging.getLogger("mimo_engine")
    before = (logger.handlers, logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def test_records_from_info_up_go_to_stderr_once(package_logger, capsys):
    setup_logging()
    setup_logging()
    logging.getLogger("mimo_engine.server.app").debug("quiet")
    logging.getLogger("mimo_engine.server.app").warning("pages are short")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING MainProcess mimo_engine.server.app: pages are short")


def test_other_loggers_are_left_alone(package_logger):
    before = list(logging.getLogger().handlers)
    setup_logging()
    assert logging.getLogger().handlers == before


def test_a_failure_is_described_without_messages_but_for_those_of_known_types():
    try:
        try:
            _ = {}["a secret"]
        except KeyError as error:
            raise RuntimeError("out of memory") from error
    except RuntimeError as error:
        plain, with_message = (
            describe_failure(error, with_message=kinds) for kinds in ((), (RuntimeError,))
        )
    assert plain.startswith("RuntimeError\n")
    assert with_message.startswith("RuntimeError: out of memory\n")
    assert "KeyError\n" in with_message
    assert "in test_a_failure" in with_message
