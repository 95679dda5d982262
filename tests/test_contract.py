"""The contract: docs/contract.rst, the checks of lint and the tests have the same sentences."""

from __future__ import annotations

import ast
import signal
import socket
import subprocess
import sys
from threading import Event, Thread

import pytest
from conftest import hello
from documents import TESTS, blocks, executed, parse
from docutils import nodes
from docutils.core import publish_doctree

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_response, lint

#: For each sentence of each rule, in order, a test that fails when the sentence stops being true.
#: Those of test_lint.py break a rule that others must keep, and check that this is reported.
PROOFS = {
    1: [
        "test_middleware.test_each_request_has_a_list_of_its_own",
        "test_lint.test_an_entry_that_cannot_run_is_reported_at_the_line_that_registers_it",
        "test_callbacks.test_every_operation_of_list_works_until_the_end",
        "test_lint.test_a_list_that_is_replaced_or_deleted_is_reported",
    ],
    2: [
        "test_middleware."
        "test_two_instances_share_one_list_with_the_app_wide_callbacks_of_the_outer_one_first",
        "test_calls.test_who_shares_a_list_when_the_call_that_made_it_has_returned",
        "test_calls.test_a_retry_outside_has_a_list_of_its_own",
        "test_calls.test_a_list_of_the_server_is_used_by_every_call_until_it_has_ended",
        "test_middleware.test_an_environ_that_is_sent_again_gets_a_new_list",
        "test_middleware.test_a_plain_list_that_is_there_is_used_and_left_to_its_owner",
        "test_middleware.test_a_key_that_is_no_list_is_named",
    ],
    3: [
        "test_matrix.test_the_event_log_is_the_one_that_the_contract_tells",
        "test_own_thread.test_a_session_of_the_thread_is_closed_before_the_next_request",
        "test_around.test_it_is_entered_in_the_thread_and_context_of_the_callback",
        "test_around.test_if_entering_or_leaving_raises_that_is_logged_and_each_callback_runs_once",
        "test_file_wrapper."
        "test_waitress_does_not_wait_for_callbacks_where_it_closes_in_its_io_thread",
        "test_lint.test_an_offence_of_the_server_is_reported_once_and_callbacks_run",
        "test_lint.test_close_from_within_the_iteration_is_reported",
    ],
    4: [
        "test_lint.test_an_offence_of_the_server_is_reported_once_and_callbacks_run",
        "test_body.test_closing_from_two_threads_at_once_runs_the_callbacks_once",
        "test_callbacks.test_a_failing_callback_is_logged_with_its_name_and_request_and_the_others_run",
        "test_lint.test_a_list_that_is_used_after_the_end_is_reported_and_raises",
        "test_lint.test_on_prepare_too_late_is_reported_and_raises",
        "test_races.test_registering_while_the_request_is_closed_runs_or_raises_in_every_order",
        "test_processes.test_a_fork_anywhere_in_a_request_leaves_the_callbacks_to_the_parent",
        "test_processes.test_each_callback_runs_in_one_process",
    ],
    5: [
        "test_matrix.test_the_event_log_is_the_one_that_the_contract_tells",
        "test_middleware.test_an_exception_of_the_app_goes_on_as_it_was",
        "test_middleware.test_an_exception_of_the_app_goes_on_as_it_was",
    ],
    6: [
        "test_contained.test_what_a_callback_raises",
        "test_contained.test_what_a_signal_handler_raises_goes_on_after_the_others_ran",
        "test_contained.test_an_exception_of_the_app_that_is_on_its_way_wins",
        "test_contained.test_a_callback_whose_code_has_not_run_is_told",
    ],
    7: [
        "test_body.test_a_dropped_body_closes_the_apps_iterable_and_runs_its_callbacks_with_a_warning",
        "test_body.test_a_dropped_body_closes_the_apps_iterable_and_runs_its_callbacks_with_a_warning",
        "test_unclosed.test_the_next_call_or_end_of_a_request_closes_all_that_waits",
    ],
    8: [
        "test_middleware.test_the_server_sees_a_misbehaving_app_as_it_would_without_us",
        "test_wrapping.test_isinstance_against_the_file_wrapper_answers_as_it_does_bare",
        "test_lint.test_a_middleware_that_copies_a_file_is_reported",
        "test_body.test_the_iterable_is_not_touched_before_the_server_touches_it",
    ],
    9: [
        "test_middleware.test_after_the_end_the_list_keeps_nothing_of_the_request",
        "test_middleware.test_two_requests_at_once_never_see_each_others_callbacks",
        "test_wrapping.test_a_copy_of_the_environ_has_the_requests_one_list",
    ],
    10: ["test_callbacks.test_no_request_header_reaches_the_key"],
    11: ["test_contract.test_a_process_that_is_killed_loses_what_had_not_run"],
}


def existing_tests():
    return {
        f"{path.stem}.{node.name}"
        for path in [*TESTS.glob("test_*.py"), *TESTS.glob("cases/test_*.py")]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def words(text):
    """The text without markup, and on one line."""
    return " ".join(publish_doctree(text).astext().split())


def test_the_rules_on_the_page_are_the_ones_of_lint_word_by_word():
    [rules] = list(parse("contract.rst").findall(nodes.enumerated_list))
    assert [" ".join(rule.astext().split()) for rule in rules] == [
        words(" ".join([f"**{title}**", *sentences])) for title, sentences in lint.CONTRACT
    ]


def test_every_check_of_lint_is_a_sentence_of_the_rule_it_names():
    checks = [value for value in vars(lint).values() if isinstance(value, lint.Check)]
    assert len(checks) == 8
    for check in checks:
        assert check.sentence in lint.CONTRACT[check.rule - 1].sentences
        assert check.way_out


@pytest.mark.parametrize("number", range(1, len(lint.CONTRACT) + 1))
def test_every_sentence_has_a_test(number):
    assert len(PROOFS[number]) == len(lint.CONTRACT[number - 1].sentences)
    assert set(PROOFS[number]) - existing_tests() == set()


def test_the_page_names_the_tests():
    [shown] = parse("contract.rst").findall(nodes.definition_list)
    assert {
        item[0].astext(): [line.astext() for line in item.findall(nodes.line)] for item in shown
    } == {f"Rule {n}: {lint.CONTRACT[n - 1].title}": proofs for n, proofs in PROOFS.items()}


def test_what_others_have_to_keep_is_proven_by_the_tests_of_lint():
    checked = {value.sentence for value in vars(lint).values() if isinstance(value, lint.Check)}
    for proofs, (_, sentences) in zip(PROOFS.values(), lint.CONTRACT, strict=True):
        for proof, sentence in zip(proofs, sentences, strict=True):
            assert proof.startswith("test_lint.") == (sentence in checked), sentence


def test_what_a_callback_can_know_is_what_the_page_says():
    [known] = [
        rows
        for table in parse("contract.rst").findall(nodes.table)
        for [header, *rows] in [[row[0].astext() for row in table.findall(nodes.row)]]
        if header == "Attribute"
    ]
    attributes = [name for name in dir(CallbackList) if name not in dir(list)]
    shown = [name for name in attributes if isinstance(getattr(CallbackList, name), property)]
    assert sorted(known) == shown


def test_the_server_that_is_shown_keeps_the_contract_and_no_client_waits(caplog):
    """A stream without Content-Length, to a server that ends it by closing the connection."""
    [native] = blocks("contract.rst").values()
    names = executed(native)
    handler = type("Handler", (names["Handler"],), {"log_message": lambda *args: None})
    read, events = Event(), []

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: 1 / 0)
        after_this_response(lambda: events.append(read.wait(30)))
        return iter(hello(environ, start_response))

    with names["Server"](("127.0.0.1", 0), handler) as server:
        server.set_app(lint.LintMiddleware(AfterResponseMiddleware(lint.LintMiddleware(app))))
        thread = Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"".join(iter(lambda: client.recv(1000), b"")).endswith(b"\r\n\r\nhello")
        read.set()
        thread.join()
    assert events == [True]
    [message] = caplog.messages
    assert message.endswith("of a request of 127.0.0.1 failed.")


KILLED = """
import os, signal
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    environ["wsgi.after"].append(lambda: print("first", flush=True))
    environ["wsgi.after"].append(lambda: os.kill(os.getpid(), signal.SIGKILL))
    environ["wsgi.after"].append(lambda: print("lost", flush=True))
    return []

AfterResponseMiddleware(app)({}, None).close()
"""


def test_a_process_that_is_killed_loses_what_had_not_run():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "first\n")
