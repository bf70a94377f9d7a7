"""Upload to the hub: what goes there, and what is said where it cannot."""

import time

import huggingface_hub
import pytest

from modernllm.core.config import InputError, RunFailed
from modernllm.models import hub_upload
from modernllm.models.hub_upload import push_model


@pytest.fixture
def model(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md", "record.json", "recipe.yaml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    "Calls of the hub's interface, which are not made."
    made = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *given, **named: made.append((given, named)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **named: made.append(named))
    return made


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub_upload, "hub_answers", lambda: True)


def test_a_new_repository_is_private_and_the_record_stays_here(model, calls, online):
    assert push_model(model, "somebody/small").endswith("/somebody/small")
    (given, named), uploaded = calls
    assert given == ("somebody/small",) and named == {"private": True, "exist_ok": True}
    assert uploaded["folder_path"] == model and uploaded["ignore_patterns"] == ["record.json", "recipe.yaml"]


def test_without_a_network_the_answer_takes_seconds(model, calls, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids .* nothing was uploaded"):
        push_model(model, "somebody/small")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="does not answer; nothing was uploaded"):
        push_model(model, "somebody/small")
    assert time.perf_counter() - start < 5 and not calls


def test_an_error_of_the_hub_is_one_line(model, online, monkeypatch):
    def refuse(self, *given, **named):
        raise ValueError("no token\nlog in")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RunFailed) as error:
        push_model(model, "somebody/small")
    assert str(error.value) == "hub: somebody/small: ValueError: no token log in"


@pytest.mark.parametrize("repo", ["small", "a/b/c", "/small", "somebody/"])
def test_a_repository_has_an_owner_and_a_name(repo, model, calls):
    with pytest.raises(InputError, match="allowed: ORG/NAME"):
        push_model(model, repo)
    assert not calls


def test_a_model_without_a_card_is_not_published(model, calls, online):
    (model / "README.md").unlink()
    with pytest.raises(InputError, match="has no card"):
        push_model(model, "somebody/small")
    assert not calls
