"""Secrets in settings: refused where others can read them, kept as references, never written down."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from calibrated_rl.components.component import strict_config, valid_keys
from calibrated_rl.config.load import load_config, to_yaml, variants_of
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.run.saved_run import changed_settings, refuse_other_settings
from calibrated_rl.settings.secrets import HIDDEN, is_secret, masked
from tests.support.paths import ROOT

VALUE = "hunter-2-and-a-half"
REFERENCE = "${oc.env:CALIBRATED_RL_TEST}"


@dataclass(frozen=True)
class Client:
    """Settings of a part that logs in somewhere."""

    api_key: str = ""
    retries: int = 3


def config_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text if "arms:" in text else f"arms: [start]\n{text}")
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "hubToken", "a.b.api_key", "api-key", "APIKey", "password", "db_password_2", "clientSecret",
     "credentials", "private_key", "auth", "Authorization", "accessKey"],
)  # fmt: skip
def test_keys_that_name_a_secret(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    ["micro_batch_tokens", "tokens_per_update", "eos_token", "max_token", "keyboard", "secretary", "author", "monkey"],
)
def test_keys_that_name_none(key: str) -> None:
    assert not is_secret(key)


def test_no_setting_of_ours_is_taken_for_a_secret() -> None:
    assert not [key for key in valid_keys(RunConfig) if is_secret(key)]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"human_config: {{api_key: {VALUE}}}", "human_config.api_key"),
        (f"logs: {{reader: x, nested: [{{password: {VALUE}}}]}}", "logs.nested.password"),
        (f"task_config: {{credentials: {{user: me, word: {VALUE}}}}}", "task_config.credentials.user"),
        ("task_config: {password: 123456}", "task_config.password"),
        (f"variants: {{v: {{change: [human_config.token={VALUE}]}}}}", "variants.v.change: human_config.token"),
        ("human_config: {api_key: '${oc.env:NAME,hunter}'}", "human_config.api_key"),
        ("name: hunter\nhuman_config: {api_key: '${name}'}", "human_config.api_key"),
    ],
)
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, text: str, key: str, mode: int) -> None:
    with pytest.raises(UserError) as refused:
        load_config(config_file(tmp_path, text, mode))
    words = str(refused.value)
    assert f"mine.yaml: '{key}' is a secret" in words and "${oc.env:NAME}" in words
    assert "hunter" not in words and "123456" not in words


def test_a_private_file_a_reference_and_an_empty_value_are_accepted(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, f"human_config: {{token: {VALUE}}}")).human_config == {"token": VALUE}
    for value in (f"'{REFERENCE}'", "''", "null", "true"):
        load_config(config_file(tmp_path, f"human_config: {{token: {value}}}", 0o644))


def test_every_file_and_the_command_line_are_looked_at(tmp_path: Path) -> None:
    file = config_file(tmp_path, "name: mine")
    other = tmp_path / "other.yaml"
    other.write_text(f"human_config: {{token: {VALUE}}}")
    other.chmod(0o644)
    with pytest.raises(UserError, match=r"other\.yaml: 'human_config\.token' is a secret"):
        load_config(file, [str(other)])
    with pytest.raises(UserError, match=r"command line: 'human_config\.token' is a secret"):
        load_config(file, [f"human_config.token={VALUE}"])
    assert load_config(file, [f"human_config.token={REFERENCE}"]).human_config == {"token": REFERENCE}


def test_a_reference_is_looked_up_where_it_is_needed_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIBRATED_RL_TEST", VALUE)
    monkeypatch.setenv("CALIBRATED_RL_RETRIES", "7")
    text = (
        f"human_config: {{api_key: '{REFERENCE}', retries: '${{oc.decode:${{oc.env:CALIBRATED_RL_RETRIES}}}}'}}\n"
        f"variants: {{v: {{change: ['human_config.api_key={REFERENCE}']}}}}"
    )
    file = config_file(tmp_path, text, 0o644)
    config = load_config(file)
    assert config.human_config == {"api_key": REFERENCE, "retries": 7}
    assert strict_config(Client, config.human_config, "human_config") == Client(VALUE, 7)
    assert variants_of(config, file, [])["v"].human_config == config.human_config
    written = to_yaml(config)
    assert VALUE not in written and VALUE not in repr(config)
    monkeypatch.delenv("CALIBRATED_RL_TEST")
    again = load_config(config_file(tmp_path, written, 0o644))
    assert again == config and changed_settings(config, again) == []
    with pytest.raises(UserError, match="human_config: key 'api_key': .*CALIBRATED_RL_TEST"):
        strict_config(Client, again.human_config, "human_config")


def test_what_is_spelt_out_is_not_written_and_the_run_goes_on(tmp_path: Path) -> None:
    text = f"human_config: {{api_key: {VALUE}}}\nvariants: {{v: {{change: [human_config.token={VALUE}]}}}}"
    file = config_file(tmp_path, text)
    config = load_config(file)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "config.yaml").chmod(0o644)
    assert VALUE not in (run / "config.yaml").read_text()
    refuse_other_settings(run, config)
    saved = load_config(run / "config.yaml")
    assert saved.human_config == {"api_key": HIDDEN} and saved.variants["v"].change == [f"human_config.token={HIDDEN}"]
    with pytest.raises(UserError, match="the secret 'api_key' was not stored with the run"):
        strict_config(Client, saved.human_config, "human_config")
    with pytest.raises(UserError, match="command line: 'human_config.token' is a secret"):
        variants_of(config, file, [])


def test_text_that_only_looks_like_an_entry_is_left_alone() -> None:
    tree = {"words": "no secret here: a=b", "change": ["training.updates=3", "a.token="], "more": [1, None, 2.5]}
    assert masked(tree) == tree


@pytest.mark.slow
def test_a_job_refuses_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = config_file(tmp_path, yaml.safe_dump({"human_config": {"api_key": VALUE}}), 0o644)
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/compare.py"), str(file)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and VALUE not in done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "mine.yaml: 'human_config.api_key' is a secret" in last
    assert not (tmp_path / "runs").exists()
