"""What looks like keys, passwords, card and phone numbers is counted and named, and can be left out."""

import json
from collections import Counter

import pytest

from comigs_edge.data.secrets import find_secrets

SECRETS = {
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA": "key",
    "aws_access_key_id AKIAIOSFODNN7EXAMPLE": "key",  # Amazon's own example
    "token ghp_16C7e42F292c6912E7710c838347Ae178B4a": "key",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U": "key",  # RFC 7515
    "api_key = 0123456789abcdef": "key",
    "wifi password: hunter2hunter2": "password",
    "Das Passwort ist: geheim99": "password",
    "PIN 4711": "password",
    "card 4111 1111 1111 1111 until 12/30": "card number",  # the issuers' test numbers
    "378282246310005": "card number",
    "5555-5555-5555-4444": "card number",
    "call +44 20 7946 0018": "phone number",  # Ofcom's numbers for drama
    "(202) 555-0173": "phone number",
    "0301 2345678": "phone number",
    "020 7946 0018": "phone number",
}


@pytest.mark.parametrize("words", SECRETS)
def test_what_is_written_as_a_secret_is_found_once_as_its_kind(words):
    assert find_secrets(f"Note: {words}.") == Counter({SECRETS[words]: 1})


@pytest.mark.parametrize(
    "words",
    [
        "I passed the exam; the password was changed by me.", "on 2024-05-17 at 10:30", "4111 1111 1111 1112", "page 378282246",
        "01-02-2020", "pi is 3.14159265358979323846", "ISBN 978-3-16-148410-0", "192.168.100.200", "version 0.12.345",
        "1 000 000 000 000 inhabitants", "a pin on a map of 1850", "sk-8 is a road",
    ],
)  # fmt: skip
def test_what_only_resembles_a_secret_is_not_one(words):
    assert not find_secrets(words)


def test_secrets_are_counted_and_named_and_left_out_on_request_from_then_on(run, ready, tmp_path):
    notes = tmp_path / "private"
    notes.mkdir()
    lines = [
        {"text": "the number of the plumber is +44 20 7946 0018, he comes on Mondays"},
        {"text": "the heron stood in the rain"},
    ]
    (notes / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown = run("data", "add", notes).output
    assert "1 phone number in a.jsonl" in shown
    assert "--without-secrets" in shown
    facts = json.loads(run("data", "add", "--json", "--without-secrets", notes).stdout)
    assert facts["secrets"] == {str(notes / "a.jsonl"): {"phone number": 1}}
    assert facts["left_out_for_secrets"] == 1
    (notes / "a.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"text": "and then it flew away over the lake"}])))
    again = json.loads(run("data", "add", "--json", notes).stdout)
    assert (again["added"], again["left_out_for_secrets"]) == (1, 1)
    assert run("data", "add", notes).output.count("left out 1 document that holds what looks like a secret") == 1
