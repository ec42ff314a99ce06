"""What benchmarks/serve_load.py makes of its inputs; the load itself takes an environment with locust."""

import base64
import json

import serve_load


def test_the_middle_and_the_end_of_a_histogram():
    assert serve_load._spread({"200": 50, "30.0": 45, "1000": 5}) == {"median": 200, "p95": 200}
    assert serve_load._spread({"7": 1}) == {"median": 7, "p95": 7}


def test_questions_of_each_kind_as_openai_writes_them():
    asked = serve_load.questions()
    assert sorted(question["name"] for question in asked) == sorted(serve_load.KINDS)
    parts = [part for question in asked for part in question["messages"][0]["content"] if part["type"] != "text"]
    assert sorted(part["type"] for part in parts) == ["image_url", "video_url"]
    for part in parts:
        assert set(part) == {"type", part["type"]} and base64.b64decode(part[part["type"]]["url"].split(",")[1])


def test_the_user_that_locust_gets_is_a_program():
    compile(serve_load.USER.format(questions=json.dumps(serve_load.questions())), "locustfile.py", "exec")
