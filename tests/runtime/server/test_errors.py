"""Errors of the runtime as a client of the HTTP server gets them: by type and field, whatever their text says."""

import pytest

from ernie_export.common.errors import (
    ContextLengthExceeded,
    InvalidFile,
    InvalidMedia,
    InvalidValue,
    Unavailable,
    UserError,
    one_printable_line,
)
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.serving.http.errors import from_user_error


@pytest.mark.parametrize(
    ("error", "param", "code"),
    [
        (InvalidMedia("messages[2].content[1]", "an image", "an empty file"), "messages.2.content.1", "invalid_value"),
        (InvalidValue("messages[0].role", "a role", "none"), "messages.0.role", "invalid_value"),
        (InvalidMedia("image 1", "an aspect ratio of at most 200", "1×999"), "messages", "invalid_value"),
        (InvalidValue("min_new_tokens", "at most 5", 7), "min_tokens", "invalid_value"),
        (InvalidValue("top_p", "at most 1", 7), "top_p", "invalid_value"),
        (ContextLengthExceeded("prompt", "at most 9 tokens", 10), "messages", "context_length_exceeded"),
        (ContextLengthExceeded("prompt and answer", "at most 9", 10), "max_tokens", "context_length_exceeded"),
        (UserError("prompt: a text that only looks like a field"), "messages", "invalid_value"),
    ],
    ids=lambda value: one_printable_line(str(value))[:40],
)
def test_type_and_field_decide(error, param, code):
    response = from_user_error(error)
    assert (response.status, response.param, response.code) == (400, param, code)
    assert response.message == str(error)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unavailable("/srv/bundle/vision.onnx: expected memory for it, found too little"), 503, "unavailable"),
        (InvalidFile("/srv/bundle/vision.onnx", "a graph", "another"), 500, "internal_error"),
    ],
)
def test_faults_of_the_server_are_logged_and_name_no_file_to_the_client(error, status, code, caplog):
    response = from_user_error(error)
    assert (response.status, response.param, response.code) == (status, None, code)
    assert "/srv" not in response.message and str(error) in caplog.text


def test_every_sampling_option_has_a_name_in_a_request():
    for name in vars(SamplingParams()):
        assert from_user_error(InvalidValue(name, "another", "this")).param != "messages"
