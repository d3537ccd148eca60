"""What a form says to the model, and the fields that it may have."""

import asyncio

import pytest
from starlette.requests import Request

from mimo_engine.errors import RequestError
from mimo_engine.server.languages import LANGUAGES
from mimo_engine.server.transcription_schemas import TranscriptionRequest, form_schema, read_form


def request(**fields):
    return TranscriptionRequest.model_validate_strings(fields, strict=False)


def test_the_instruction_has_a_line_for_all_that_the_request_says():
    assert request().instruction("Write.") == "Write."
    full = request(language="de", keywords=["Elbe", "Oder"], prompt="At a river.")
    assert full.instruction("Write.").splitlines() == [
        "Write.",
        "The language is German.",
        "These words may occur in it: Elbe, Oder.",
        "Context and spelling, not part of the audio: At a river.",
    ]
    assert "one of these: French, Dutch." in request(languages=["fr", "NL"]).instruction("Write.")


def test_languages_are_those_of_iso_639_1():
    assert len(LANGUAGES) == 183
    assert all(len(code) == 2 and code.islower() and name for code, name in LANGUAGES.items())
    assert (LANGUAGES["zh"], LANGUAGES["zu"], LANGUAGES["aa"]) == ("Chinese", "Zulu", "Afar")


def test_texts_of_a_form_become_numbers_and_switches():
    read = request(temperature="0.4", stream="true", top_k="20", seed="7")
    params = read.sampling_params(10.0, 4000)
    assert (params.temperature, params.top_k, params.seed, read.stream) == (0.4, 20, 7, True)
    assert params.logprobs is None
    assert request(include=["logprobs"]).sampling_params(1.0, 99).logprobs == 0


@pytest.mark.parametrize(
    ("given", "sound_s", "room", "most"),
    [
        ({}, 10.0, 4000, 384),
        ({}, 10.0, 50, 50),
        ({}, 10.0, -5, 1),
        ({"max_completion_tokens": "9"}, 10.0, 4, 9),
    ],
)
def test_a_default_of_tokens_yields_to_the_context_and_a_demand_does_not(
    given, sound_s, room, most
):
    assert request(**given).sampling_params(sound_s, room).max_tokens == most


def test_parameters_out_of_bounds_are_refused():
    with pytest.raises(RequestError, match="temperature"):
        request(temperature="-1").sampling_params(1.0, 99)


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "application/json", "multipart/mixed", ""]
)
def test_what_is_no_form_with_files_is_refused_unread(kind):
    async def receive():
        raise AssertionError("the body is read")

    headers = [(b"content-type", kind.encode())] if kind else []
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    with pytest.raises(RequestError, match="send multipart/form-data") as caught:
        asyncio.run(read_form(Request(scope, receive)))
    assert caught.value.param == "file"


def test_the_schema_for_clients_has_the_file_and_every_field():
    schema = form_schema()["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"file", *TranscriptionRequest.model_fields}
